"""The owner's promises: what is acknowledged is there once, batches are cut once, and old callers are fenced."""

from __future__ import annotations

import dataclasses
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from buffers.decider import MOST_REPLACED
from buffers.intake import RETRY_WINDOW, Retries
from buffers.owner import StoreOwner, episode_id
from buffers.view import StoreView
from contracts.errors import FencedError, StoreBusyError, StoreError, StoreIdentityError, StoreStoppedError
from contracts.protocols import Store
from contracts.records import (
    Ack,
    Batch,
    Closed,
    Disposition,
    Erased,
    Feedback,
    Kind,
    Served,
    Session,
    Skip,
    Span,
    Trim,
    Version,
)
from tests.unit.buffers.bench import GROUPS_PER_STEP, Bench, Clock, name_task, opened, small_config


def test_the_owner_is_a_store(tmp_path: Path) -> None:
    with opened(tmp_path) as bench:
        store: Store = bench.owner
        assert store.ledger().handed == 0


def test_what_is_acknowledged_is_read_back(tmp_path: Path) -> None:
    with opened(tmp_path) as bench:
        bench.serve(0)
        (lease, *_) = bench.lease()
        sent = [bench.make(lease, member) for member in lease.missing]
        acks = bench.owner.append(sent)
        assert [(ack.duplicate, ack.late) for ack in acks] == [(False, False)] * 2
        kept = bench.owner.read([ack.lsn for ack in reversed(acks)])
        for one, other in zip(kept, reversed(sent), strict=True):
            assert dataclasses.replace(one, steps=()) == dataclasses.replace(other, steps=())
            np.testing.assert_array_equal(one.steps[0].log_probs, other.steps[0].log_probs)
        with pytest.raises(StoreError, match="is a Task, not an Episode"):
            bench.owner.read([lease.lsn])


@pytest.mark.parametrize("ack", ["durable", "os"])
def test_a_second_copy_is_told_the_first_ones_lsn(tmp_path: Path, ack: str) -> None:
    config = small_config(ack=ack)
    with opened(tmp_path, config=config) as bench:
        bench.serve(0)
        (lease, *_) = bench.lease()
        sent = bench.make(lease, 0)
        (first,) = bench.owner.append([sent])
        other_seq = bench.make(lease, 0, reward=9.0)
        for copy in (sent, other_seq):
            (again,) = bench.owner.append([copy])
            assert (again.lsn, again.duplicate) == (first.lsn, True)
        same_seq = dataclasses.replace(bench.make(lease, 1), seq=sent.seq)
        with pytest.raises(StoreError, match=f"came as number {sent.seq}, which was another record's"):
            bench.owner.append([same_seq, bench.make(lease, 1)])
        assert bench.owner.ledger().episodes == 1
        twice = bench.make(lease, 1)
        one, two = bench.owner.append([twice, twice])
        assert (one.duplicate, two.duplicate, one.lsn) == (False, True, two.lsn)
        assert bench.owner.ledger().episodes == 2
    with opened(tmp_path, config=config) as bench:
        (late_copy,) = bench.owner.append([bench.make(lease, 0)])
        assert (late_copy.lsn, late_copy.duplicate) == (first.lsn, True)
        assert bench.owner.status()["doubled"] == 0


def test_the_newest_records_of_a_producer_are_known_by_their_numbers(tmp_path: Path) -> None:
    with opened(tmp_path) as bench:
        bench.serve(0)
        (lease, *_) = bench.lease()
        first = bench.make(lease, 0)
    retries, newest = Retries(), RETRY_WINDOW + 10
    for seq in (3, 2, *range(4, newest + 1)):
        retries.remember(dataclasses.replace(first, seq=seq), 1000 + seq)

    def find(seq: int, **changes: Any) -> int | None:
        return retries.find(dataclasses.replace(first, seq=seq, **changes))

    assert [find(seq) for seq in (newest, 11, 10, 2, 0, -1, newest + 1)] == [1000 + newest, 1011, *[None] * 5]
    assert find(newest, producer_epoch=first.producer_epoch + 1) is None
    assert find(newest, producer="another") is None
    retries.remember(dataclasses.replace(first, seq=1, producer_epoch=first.producer_epoch + 1), 5)
    assert find(newest) is None
    assert find(1, producer_epoch=first.producer_epoch + 1) == 5


def test_many_threads_share_the_log(tmp_path: Path) -> None:
    config = small_config(max_staleness=39)
    with opened(tmp_path, config=config) as bench:
        bench.serve(0)
        workers = [Bench(bench.owner, producer=f"rollout-{number}") for number in range(8)]
        together = threading.Barrier(len(workers))

        def work(worker: Bench) -> list[int]:
            together.wait()
            lsns = []
            while leases := worker.lease(max_tasks=1):
                for lease in leases:
                    for member in lease.missing:
                        lsns += [ack.lsn for ack in worker.owner.append([worker.make(lease, member)])]
            return lsns

        with ThreadPoolExecutor(len(workers)) as pool:
            lsns = [lsn for done in pool.map(work, workers) for lsn in done]
        ledger = bench.owner.ledger()
        assert (ledger.handed, ledger.ready, ledger.episodes) == (80, 80, 160)
        assert len(set(lsns)) == 160
        assert StoreView.open(tmp_path).fold == bench.owner._state.fold


def test_one_episode_sent_by_many_threads_is_kept_once(tmp_path: Path) -> None:
    with opened(tmp_path) as bench:
        bench.serve(0)
        (lease, *_) = bench.lease()
        sent = bench.make(lease, 0)
        together = threading.Barrier(8)

        def send(_: int) -> tuple[int, bool]:
            together.wait()
            (ack,) = bench.owner.append([sent])
            return ack.lsn, ack.duplicate

        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(send, range(8)))
        assert len({lsn for lsn, _ in answers}) == 1
        assert sorted(duplicate for _, duplicate in answers) == [False] + [True] * 7


def test_an_answer_says_late_exactly_when_the_log_does(tmp_path: Path) -> None:
    """Leases time out all the time while their episodes arrive: what an answer says must not be taken back."""
    clock, done = Clock(), threading.Event()
    with opened(tmp_path, config=small_config(max_staleness=1000), clock=clock) as bench:
        bench.serve(0)
        workers = [Bench(bench.owner, producer=f"rollout-{number}", session=bench.session) for number in range(6)]

        def work(worker: Bench) -> list[tuple[int, Ack]]:
            heard = []
            for _ in range(30):
                (lease,) = worker.lease(max_tasks=1)
                for member in lease.missing:
                    heard += [(lease.lsn, ack) for ack in worker.owner.append([worker.make(lease, member)])]
            return heard

        def let_time_pass() -> None:
            while not done.is_set():
                clock.now_s += 61.0
                bench.owner.append([])

        with ThreadPoolExecutor(len(workers) + 1) as pool:
            hurry = pool.submit(let_time_pass)
            try:
                heard = [answer for answers in pool.map(work, workers) for answer in answers]
            finally:
                done.set()
            hurry.result()
        groups = bench.owner._state.fold.groups
        for lease, ack in heard:
            closed_at = groups[lease].closed_at
            assert ack.late == (closed_at is not None and ack.lsn >= closed_at)
        assert {ack.late for _, ack in heard} == {True, False}
        assert bench.owner.ledger().balanced


# ---------------------------------------------------------------------------------------------- batches


def test_a_batch_is_first_come_first_and_in_task_order(tmp_path: Path) -> None:
    with opened(tmp_path) as bench:
        bench.serve(0)
        first, second, third, _ = bench.lease()
        bench.play([third])
        assert bench.owner.append_batch(bench.request(1)) is None
        bench.play([first], reward=1.0)
        bench.play([second])
        lsn, batch = bench.cut(1)
        assert [row.lease for row in batch.rows] == [first.lsn] * 2 + [third.lsn] * 2
        assert [episode.member for episode in bench.owner.read([row.episode_lsn for row in batch.rows])] == [0, 1] * 2
        assert batch.zero_spread == (first.lsn,)
        assert (batch.seed, batch.coefficients, batch.dropped) == (7, {"kl": 0.5}, ())
        assert all(row.episode_lsn < batch.data_lsn for row in batch.rows)
        bench.decide_version(1, step=1, batch_lsn=lsn)
        assert bench.owner.ledger().ended == {
            **{disposition.value: 0 for disposition in Disposition},
            "trained": 1,
            "zero_spread": 1,
        }


def test_the_same_step_asked_twice_gets_the_stored_batch(tmp_path: Path) -> None:
    with opened(tmp_path) as bench:
        bench.serve(0)
        bench.play(bench.lease())
        first = bench.cut(1)
        assert bench.cut(1) == first
    with opened(tmp_path) as bench:
        assert bench.cut(1) == first
        assert len(bench.owner.decisions(kinds=[Kind.BATCH])) == 1


def test_stale_groups_are_dropped_in_the_batch_they_were_passed_over_for(tmp_path: Path) -> None:
    with opened(tmp_path, config=small_config(max_staleness=3)) as bench:
        bench.serve(0)
        old, *_ = leases = bench.lease(max_tasks=3)
        bench.play([old], version=0)
        bench.serve(1)
        bench.serve(2)
        bench.play(leases[1:], version=1)
        _, batch = bench.cut(1, parent_version=2)
        assert [(drop.lease, drop.disposition) for drop in batch.dropped] == [(old.lsn, Disposition.STALE)]
        assert bench.owner.ledger().ended["stale"] == 1


def test_what_is_dropped_is_logged_though_the_batch_cannot_be_filled(tmp_path: Path) -> None:
    with opened(tmp_path, config=small_config(max_staleness=3)) as bench:
        bench.serve(0)
        bench.serve(1)
        bench.serve(2, parent=0)
        stale, foreign = bench.lease(max_tasks=2)
        bench.play([stale], version=0)
        bench.play([foreign], version=1)
        assert bench.owner.append_batch(bench.request(1, parent_version=2, max_staleness=0)) is None
        ledger = bench.owner.ledger()
        assert (ledger.ended["stale"], ledger.ended["off_branch"], ledger.in_flight) == (1, 1, 0)


def test_groups_without_spread_are_replaced_where_the_learner_asks_for_spread(tmp_path: Path) -> None:
    with opened(tmp_path, config=small_config(max_staleness=3)) as bench:
        bench.serve(0)
        flat, spread, flat_too, later = bench.lease(max_tasks=4)
        bench.play([flat, flat_too], reward=1.0)
        assert bench.owner.append_batch(bench.request(1, with_spread=True)) is None
        assert bench.owner.ledger().ended["zero_spread"] == 2  # closed at once: admission may replace them
        more = bench.lease(max_tasks=2)
        bench.play([spread, more[0]])
        bench.play([more[1]], reward=0.0)
        bench.play([later])
        lsn, batch = bench.cut(1, with_spread=True, num_groups=3)
        assert [row.lease for row in batch.rows[::2]] == [spread.lsn, later.lsn, more[0].lsn]
        assert batch.zero_spread == ()
        assert [(drop.lease, drop.disposition) for drop in batch.dropped] == [(more[1].lsn, Disposition.ZERO_SPREAD)]
        bench.decide_version(1, step=1, batch_lsn=lsn)
        ledger = bench.owner.ledger()
        assert (ledger.ended["zero_spread"], ledger.ended["trained"], ledger.balanced) == (3, 3, True)
        assert bench.cut(1, with_spread=True) == (lsn, batch)


def test_a_batch_does_not_replace_groups_for_ever(tmp_path: Path) -> None:
    with opened(tmp_path) as bench:
        bench.serve(0)
        for _ in range(MOST_REPLACED):
            bench.play(bench.lease(max_tasks=GROUPS_PER_STEP), reward=1.0)
            assert bench.owner.append_batch(bench.request(1, with_spread=True)) is None
    with opened(tmp_path) as bench:  # known from the log alone
        bench.owner.decide(Served(version=0, gap=0.0), bench.session)
        bench.play(bench.lease(max_tasks=GROUPS_PER_STEP), reward=1.0)
        lsn, batch = bench.cut(1, with_spread=True)
        assert len(batch.zero_spread) == GROUPS_PER_STEP
        bench.serve(1, step=1, batch_lsn=lsn)
        bench.play(bench.lease(max_tasks=GROUPS_PER_STEP), reward=1.0, version=1)
        assert bench.owner.append_batch(bench.request(2, parent_version=1, with_spread=True)) is None


def test_a_group_of_two_versions_is_as_old_as_its_oldest_token(tmp_path: Path) -> None:
    with opened(tmp_path) as bench:
        bench.serve(0)
        bench.serve(1)
        bench.serve(2)
        spans = (Span(start=0, version=0), Span(start=1, version=2))
        bench.play(bench.lease(max_tasks=1), spans=spans)
        bench.play(bench.lease(max_tasks=1), version=2)
        assert bench.owner.append_batch(bench.request(1, parent_version=2)) is None
        assert bench.owner.ledger().ended["stale"] == 1


def test_a_reward_may_come_late_or_not_in_time(tmp_path: Path) -> None:
    with opened(tmp_path) as bench:
        bench.serve(0)
        first, second, third, _ = bench.lease()
        bench.owner.append([bench.make(first, 0)])
        (waiting,) = bench.owner.append([bench.make(first, 1, reward=None, reward_deadline=4e9)])
        bench.play([second])
        bench.play([third], reward=None, reward_deadline=1.0)
        assert bench.owner.append_batch(bench.request(1)) is None
        assert bench.owner.ledger().ended["reward_timeout"] == 1
        (episode,) = bench.owner.read([waiting.lsn])
        feedback = Feedback(episode_id=episode.episode_id, episode_lsn=waiting.lsn, reward=0.5)
        wrongs: tuple[tuple[dict[str, Any], str], ...] = (
            ({"reward": float("nan")}, "its reward is nan"),
            ({"episode_id": "x"}, f"is {episode.episode_id}"),
            ({"episode_lsn": first.lsn}, "is a Task, not an Episode"),
            ({"episode_lsn": waiting.lsn + 8}, "no frame"),
        )
        for wrong, reason in wrongs:
            with pytest.raises(StoreError, match=reason):
                bench.owner.append_feedback(dataclasses.replace(feedback, **wrong))
        first_lsn = bench.owner.append_feedback(feedback)
        corrected = dataclasses.replace(feedback, episode_lsn=first_lsn, reward=0.75)  # it names what it corrects
        reward_lsn = bench.owner.append_feedback(corrected)
        _, batch = bench.cut(1)
        assert [row.reward_lsn for row in batch.rows][1] == reward_lsn
        assert bench.owner.read([reward_lsn])[0].reward == 0.75


def test_the_last_reward_before_the_batch_is_what_the_learner_reads(tmp_path: Path) -> None:
    """Late, twice, corrected; and again after the batch was cut, which changes nothing any more."""
    with opened(tmp_path) as bench:
        bench.serve(0)
        first, second, *_ = bench.lease()
        late = [bench.make(first, member, reward=None, reward_deadline=4e9) for member in first.missing]
        acks = bench.owner.append(late)
        bench.play([second])
        for reward in (0.25, 0.25, -4.0):
            for episode, ack in zip(late, acks, strict=True):
                bench.owner.append_feedback(
                    Feedback(episode_id=episode.episode_id, episode_lsn=ack.lsn, reward=reward + episode.member)
                )
        assert bench.owner.read([acks[0].lsn])[0].reward is None  # the episode itself stays as it came
        lsn, batch = bench.cut(1)
        rows = [row.reward_lsn for row in batch.rows]
        assert [episode.reward for episode in bench.owner.read(rows)] == [-4.0, -3.0, 0.0, 1.0]
        bench.owner.append_feedback(Feedback(episode_id=late[0].episode_id, episode_lsn=acks[0].lsn, reward=9.0))
    with opened(tmp_path) as bench:
        stored = bench.owner.append_batch(bench.request(1))
        assert stored == (lsn, batch)
        assert [episode.reward for episode in bench.owner.read(rows)] == [-4.0, -3.0, 0.0, 1.0]
        with StoreView.open(tmp_path) as view:
            assert [episode.reward for episode in view.episodes(rows)] == [-4.0, -3.0, 0.0, 1.0]


# ---------------------------------------------------------------------------------------------- decisions


@pytest.mark.parametrize("ack", ["durable", "os"])
def test_a_batch_names_nothing_that_a_power_loss_may_take(tmp_path: Path, ack: str) -> None:
    """A correction may come between the sync of the data log and the cut of the batch."""
    with opened(tmp_path, config=small_config(ack=ack)) as bench:
        bench.serve(0)
        first, second, *_ = bench.lease()
        acks = bench.play([first, second])
        bench.owner._state.data.writer.sync()
        (episode,) = bench.owner.read([acks[2].lsn])
        correction = Feedback(episode_id=episode.episode_id, episode_lsn=acks[2].lsn, reward=9.0)
        writer = bench.owner._state.data.writer
        sync, corrections = writer.sync, [correction, correction]

        def sync_and_go_on() -> int:
            mark = sync()
            if corrections:
                bench.owner.append_feedback(corrections.pop())
            return mark

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(writer, "sync", sync_and_go_on)
            assert bench.owner.append_batch(bench.request(1)) is None, "the second group was corrected since"
            assert bench.owner.append_batch(bench.request(1)) is None
            _, batch = bench.cut(1)
        assert max(row.reward_lsn for row in batch.rows) < batch.data_lsn <= writer.durable_lsn
        assert [one.reward for one in bench.owner.read([row.reward_lsn for row in batch.rows])] == [0.0, 1.0, 9.0, 1.0]


def test_a_zombie_learner_is_fenced(tmp_path: Path) -> None:
    with opened(tmp_path) as bench:
        bench.serve(0)
        bench.play(bench.lease())
        zombie = bench.session
        bench.session = bench.owner.open_session(Session(role="learner", epoch=2))
        with pytest.raises(FencedError, match=f"session {zombie} is over"):
            bench.owner.append_batch(bench.request(1, session=zombie))
        version = Version(version=1, parent=0, branch=0, step=1, root_hash="x")
        with pytest.raises(FencedError):
            bench.owner.decide(version, zombie)
        bench.cut(1)


def test_version_and_skip_are_compare_and_append(tmp_path: Path) -> None:
    with opened(tmp_path) as bench:
        bench.serve(0)
        bench.play(bench.lease())
        batch_lsn, _ = bench.cut(1)
        lsn = bench.decide_version(1, step=1, batch_lsn=batch_lsn)
        assert bench.decide_version(1, step=1, batch_lsn=batch_lsn) == lsn
        skip = Skip(batch_lsn=batch_lsn, step=1, branch=0, reason="nan")
        assert bench.owner.decide(skip, bench.session) == bench.owner.decide(skip, bench.session)
        kinds = [record.KIND for _, record in bench.owner.decisions(kinds=[Kind.VERSION, Kind.SKIP])]
        assert kinds == [Kind.VERSION, Kind.VERSION, Kind.SKIP]


def test_version_numbers_rise_and_have_parents(tmp_path: Path) -> None:
    with opened(tmp_path) as bench:
        bench.serve(3, parent=-1)
        with pytest.raises(StoreError, match="version 3 is not above 3"):
            bench.owner.decide(Version(version=3, parent=-1, branch=0, step=0, root_hash="other"), bench.session)
        with pytest.raises(StoreError, match="no parent version 2"):
            bench.decide_version(4, parent=2)
        with pytest.raises(StoreError, match="there is no version 9"):
            bench.owner.append_batch(bench.request(1, parent_version=9))


def test_some_records_are_not_decided(tmp_path: Path) -> None:
    with opened(tmp_path) as bench:
        closed = Closed(leases=(), disposition=Disposition.STALE, reason="mine")
        # No learner takes experience away.
        sums = {
            "handed": 0,
            "ended": {},
            "episodes": 0,
            "episodes_late": 0,
            "quarantined": {},
            "frontier": 0,
            "ahead": (),
        }
        trim, erased = Trim(data_lsn=1 << 40, reason="mine", **sums), Erased(lsns=(96,), reason="mine")  # type: ignore[arg-type]
        session, batch = Session(role="learner", epoch=1), Batch(branch=0, step=1, parent_version=0, rows=())
        for record in (closed, session, batch, trim, erased, Served(version=-1, gap=0.0)):
            with pytest.raises(StoreError, match=type(record).__name__):
                bench.owner.decide(record, bench.session)  # type: ignore[arg-type]
        with pytest.raises(StoreError, match="Closed"):
            bench.owner.open_session(closed)


def test_decisions_come_in_order_from_where_one_asks(tmp_path: Path) -> None:
    with opened(tmp_path) as bench:
        bench.serve(0)
        everything = bench.owner.decisions()
        kinds = [record.KIND for _, record in everything]
        assert kinds == [Kind.SESSION, Kind.SESSION, Kind.VERSION, Kind.SERVED]
        assert bench.owner.decisions(start=everything[2][0]) == everything[2:]


# ---------------------------------------------------------------------------------------------- opening


def test_state_survives_closing(tmp_path: Path) -> None:
    with opened(tmp_path) as bench:
        bench.serve(0)
        bench.play(bench.lease()[:3])
        bench.cut(1)
        ledger = bench.owner.ledger()
    with opened(tmp_path) as bench:
        assert bench.owner.ledger() == ledger
        assert bench.owner.epoch == 2
        assert bench.owner.status()["batched"] == 2


def test_a_store_has_one_owner(tmp_path: Path) -> None:
    with opened(tmp_path), pytest.raises(StoreBusyError):
        StoreOwner.open(tmp_path, config=small_config(), source=name_task)


def test_another_stores_folder_is_refused(tmp_path: Path) -> None:
    with opened(tmp_path / "one") as bench:
        uuid = bench.owner.uuid
    with opened(tmp_path / "two"):
        pass
    with pytest.raises(StoreIdentityError, match="not "):
        StoreOwner.open(tmp_path / "two", uuid=uuid, config=small_config(), source=name_task)
    with pytest.raises(StoreIdentityError, match="no store"):
        StoreOwner.open(tmp_path / "three", uuid=uuid, config=small_config(), source=name_task)


def test_a_lost_log_is_not_replaced_by_an_empty_one(tmp_path: Path) -> None:
    with opened(tmp_path):
        pass
    (tmp_path / "control").rename(tmp_path / "elsewhere")
    with pytest.raises(StoreIdentityError, match="no log"):
        StoreOwner.open(tmp_path, config=small_config(), source=name_task)


def test_a_closed_store_takes_nothing_more(tmp_path: Path) -> None:
    with opened(tmp_path, clock=Clock()) as bench:
        bench.serve(0)
        (lease, *_) = bench.lease()
        bench.owner.close()
        with pytest.raises(StoreStoppedError):
            bench.owner.append([bench.make(lease, 0)])


def test_episode_ids_are_of_one_store_lease_and_member() -> None:
    store = "12345678-1234-5678-1234-567812345678"
    ids = {episode_id(store, lease, member) for lease in range(4) for member in range(4)}
    assert len(ids) == 16
    assert all(len(one) == 32 and int(one, 16) >= 0 for one in ids)
    assert episode_id(store.upper(), 1, 2) == episode_id(store, 1, 2)
