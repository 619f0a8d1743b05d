"""Several owners as one store: what is lost with a shard, what is not, and who is refused."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from buffers.addresses import address, leases_in, lsn_of, part_of, shard_of, split
from buffers.view import StoreView
from configs.schema import RunConfig
from contracts.errors import FencedError, StoreIdentityError, StoreUnreachableError
from contracts.protocols import BatchRequest
from contracts.records import Batch, Disposition, Dropped, Feedback, Hold, Lease, Review, Row, Session, Span
from contracts.shards import SHARD_SPAN, Share
from tests.contract.stores import Driver, Opened
from tests.crash.sharded import NUM_SHARDS, ShardedRun, Wire, sharded_config


@pytest.fixture
def run(tmp_path: Path) -> Iterator[ShardedRun]:
    run = ShardedRun(tmp_path, config=sharded_config(mode="async", steps=100), wire=Wire())
    yield run
    run.close()


class StepDriver(Driver):
    """Asks for as many groups as a step of the run has."""

    def request(self, step: int, *, parent_version: int = 0) -> BatchRequest:
        return replace(super().request(step, parent_version=parent_version), num_groups=4)


@pytest.fixture
def driver(run: ShardedRun) -> Driver:
    driver = StepDriver(Opened(run.store, str(run.run.uuid)))
    driver.serve(0)
    return driver


def by_shard(leases: list[Lease]) -> dict[int, list[Lease]]:
    return {shard: [lease for lease in leases if shard_of(lease.lsn) == shard] for shard in range(NUM_SHARDS)}


def test_an_address_is_a_shard_and_an_lsn() -> None:
    assert address(0, 12) == 12
    assert (shard_of(address(7, 12)), lsn_of(address(7, 12))) == (7, 12)
    row = Row(episode_lsn=SHARD_SPAN + 64, reward_lsn=SHARD_SPAN + 96, lease=SHARD_SPAN + 32)
    dropped = (Dropped(lease=16, disposition=Disposition.STALE),)
    batch = Batch(
        branch=0, step=1, parent_version=0, rows=(row,), zero_spread=(SHARD_SPAN + 32,), dropped=dropped,
        shard_lsns=(100, 200),
    )  # fmt: skip
    first, second = part_of(batch, shard=0), part_of(batch, shard=1)
    assert (first.rows, first.zero_spread, first.dropped, first.data_lsn) == ((), (), dropped, 100)
    assert second.rows == (Row(episode_lsn=64, reward_lsn=96, lease=32),)
    assert (second.zero_spread, second.dropped, second.data_lsn) == ((32,), (), 200)
    assert split(batch) == [first, second]
    assert part_of(second, shard=0) == second, "a part is a batch of one shard"
    assert (leases_in(batch, shard=0), leases_in(batch, shard=1)) == ([16], [32])


@pytest.mark.parametrize("world", [1, 2, 3, 7])
def test_shares_sum_up(world: int) -> None:
    assert sum(Share(rank=rank, world=world).of(32) for rank in range(world)) == 32


def test_the_live_shards_take_over_the_share_of_a_lost_one(run: ShardedRun, driver: Driver) -> None:
    leases = by_shard(driver.lease())
    assert all(leases.values())
    assert len({lease.task.position for part in leases.values() for lease in part}) == sum(map(len, leases.values()))
    driver.play(leases[1])
    run.wire.shards[1].die()
    with pytest.raises(StoreUnreachableError, match="shard 1 is lost"):
        driver.play(leases[1])
    driver.play([*leases[0], *leases[2]])
    _, batch = driver.cut(1)
    assert {shard_of(row.lease) for row in batch.rows} == {0, 2}
    assert batch.shard_lsns[1] == -1
    assert run.store.lost == [1]
    shares = [run.wire.shards[shard].owner._state.config.learner.groups_per_step for shard in (0, 2)]
    assert sum(shares) == run.config.learner.groups_per_step
    more = by_shard(driver.lease())
    assert not more[1]
    assert len(more[0]) + len(more[2]) > 0
    driver.play([*more[0], *more[2]])
    driver.serve(1, step=1, batch_lsn=driver.store.decisions()[-1][0])
    run.wire.shards[1].come_back()
    run.wire.passed += 1000  # the time to ask again
    cut = driver.store.append_batch(driver.request(2, parent_version=1))
    assert cut is not None
    assert 1 in {shard_of(row.lease) for row in cut[1].rows}, "what waited there is used"
    assert run.store.lost == []
    assert all(owner.ledger().balanced for owner in run.owners)


def test_each_shard_says_of_its_groups_what_the_batch_says(run: ShardedRun, driver: Driver) -> None:
    driver.play(driver.lease())
    lsn, batch = driver.cut(1)
    driver.serve(1, step=1, batch_lsn=lsn)
    for shard, owner in enumerate(run.owners):
        part = part_of(batch, shard=shard)
        ledger = owner.ledger()
        assert (ledger.episodes_trained, ledger.balanced) == (len(part.rows), True)
        assert {group.lease for group in owner.offer(driver.request(2, parent_version=1)).candidates}.isdisjoint(
            row.lease for row in part.rows
        )
    view = StoreView.open(run.folder / "store")
    assert view.ledger() == driver.store.ledger()
    episodes = view.episodes([row.reward_lsn for row in batch.rows])
    assert [episode.lease for episode in episodes] == [row.lease for row in batch.rows]


def test_the_rows_of_a_batch_are_there_when_their_shard_dies_after_it_was_decided(
    run: ShardedRun, driver: Driver
) -> None:
    driver.play(driver.lease())
    _, batch = driver.cut(1)
    assert {shard_of(row.lease) for row in batch.rows} == {0, 1, 2}
    run.wire.shards[2].die()
    episodes = driver.store.read([row.reward_lsn for row in batch.rows])
    assert [episode.lease for episode in episodes] == [row.lease for row in batch.rows]


def test_a_promised_group_is_not_held(run: ShardedRun, driver: Driver) -> None:
    leases = by_shard(driver.lease())
    (lease, *_) = leases[1]
    driver.play([lease])
    request = driver.request(1)
    assert driver.store.append_batch(request) is None, "and so it is promised no more"
    shard = run.owners[1]
    shard.offer(request)
    hold = Hold(lease=lease.lsn, reason="odd")
    with pytest.raises(StoreUnreachableError, match="ask again"):
        run.store.hold(hold)
    shard.release(())
    assert run.store.hold(hold)
    assert [group.lease for group in shard.offer(request).candidates] == []
    shard.release(())
    assert run.store.review(Review(lease=lease.lsn, accepted=True, reason="it is fine"))
    assert [address(1, group.lease) for group in shard.offer(request).candidates] == [lease.lsn]


def test_a_shard_that_was_opened_again_may_have_promised_anything(run: ShardedRun, driver: Driver) -> None:
    (lease, *_) = by_shard(driver.lease())[1]
    driver.play([lease])
    run.wire.shards[1].die()
    run.wire.shards[1].come_back()
    with pytest.raises(StoreUnreachableError, match="ask again"):
        run.store.hold(Hold(lease=lease.lsn, reason="odd"))
    run.wire.passed += 1000
    driver.store.append_batch(driver.request(1))
    assert run.store.hold(Hold(lease=lease.lsn, reason="odd"))


def test_a_late_reward_finds_its_shard(driver: Driver, run: ShardedRun) -> None:
    (lease, *_) = by_shard(driver.lease())[2]
    episode = driver.make(lease, 0, reward=None, reward_deadline=2e9)
    (ack,) = driver.store.append([episode])
    lsn = run.store.append_feedback(Feedback(episode_id=episode.episode_id, episode_lsn=ack.lsn, reward=0.25))
    assert shard_of(lsn) == 2
    assert [one.reward for one in driver.store.read([lsn])] == [0.25]


def test_an_old_epoch_is_fenced_by_a_shard_that_was_away(run: ShardedRun, driver: Driver) -> None:
    (lease, *_) = by_shard(driver.lease())[1]
    run.wire.shards[1].die()
    newer = driver.store.attach(driver.producer)
    run.wire.shards[1].come_back()
    run.wire.passed += 1000
    with pytest.raises(FencedError):
        driver.store.append([driver.make(lease, 0)])
    (ack,) = driver.store.append([replace(driver.make(lease, 0), producer_epoch=newer)])
    assert not ack.duplicate


def test_an_older_learner_brings_no_news(run: ShardedRun, driver: Driver) -> None:
    old = driver.request(1)
    run.store.open_session(Session(role="learner", epoch=0))
    for owner in run.owners:
        with pytest.raises(FencedError):
            owner.offer(old)


def test_a_version_that_a_shard_has_not_heard_of_is_no_fault_of_the_episode(run: ShardedRun, driver: Driver) -> None:
    (lease, *_) = by_shard(driver.lease())[1]
    with pytest.raises(StoreUnreachableError, match="version 1"):
        driver.store.append([driver.make(lease, 0, spans=(Span(start=0, version=1),))])


def test_a_shard_whose_folder_is_gone_is_not_taken_for_a_new_one(run: ShardedRun, driver: Driver) -> None:
    driver.play(driver.lease())
    lsn, batch = driver.cut(1)
    assert 1 in {shard_of(row.lease) for row in batch.rows}
    run.wire.shards[1].die()
    shutil.rmtree(run.folder / "store-1")
    run.wire.shards[1].come_back()
    with pytest.raises(StoreIdentityError, match="its folder was lost"):
        driver.serve(1, step=1, batch_lsn=lsn)


def test_a_shard_that_followed_more_than_shard_0_has_refuses(run: ShardedRun, driver: Driver) -> None:
    driver.play(driver.lease())
    driver.cut(1)
    run.close()
    shutil.rmtree(run.folder / "store")
    run.folder.joinpath("uuid").unlink()
    again = ShardedRun(run.folder, config=run.config, wire=Wire())
    with pytest.raises(StoreIdentityError, match="not of one history"):
        Driver(Opened(again.store, str(again.run.uuid)))
    again.close()


@pytest.mark.parametrize(
    "other",
    [
        {"replay": {"enabled": True}},
        {"archive": {"uri": "file:///somewhere"}},
        {"serving": {"enabled": True}},
        {"store": {"shards": 3, "sampler": "uniform"}},
        {"learner": {"groups_per_step": 2}},
    ],
)
def test_what_shards_cannot_do_yet_is_refused(other: dict[str, object]) -> None:
    RunConfig.model_validate({"store": {"shards": 3}})
    with pytest.raises(ValueError, match=r"store\.shards is 3|of 3 shards"):
        RunConfig.model_validate({"store": {"shards": 3}, **other})
