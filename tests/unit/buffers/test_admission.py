"""Who is handed what, and when nothing is handed out."""

from __future__ import annotations

from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from pathlib import Path

import pytest

from buffers.state import MAX_WAITING
from buffers.view import StoreView
from contracts.errors import FencedError
from contracts.records import Branch, Disposition, Guard, Lease, Served, Skip, StopReason
from tests.unit.buffers.bench import Bench, Clock, opened, small_config


def positions(leases: list[Lease]) -> list[int]:
    return [lease.task.position for lease in leases]


def test_nothing_before_a_version_is_served(tmp_path: Path) -> None:
    with opened(tmp_path) as bench:
        assert bench.lease() == []
        bench.decide_version(0)
        assert bench.lease() == []
        bench.serve(0)
        assert positions(bench.lease(max_tasks=1)) == [0]


def test_async_hands_out_as_much_as_the_staleness_bound_lets_be_used(tmp_path: Path) -> None:
    with opened(tmp_path, config=small_config(max_staleness=2)) as bench:
        bench.serve(0)
        leases = bench.lease()
        assert positions(leases) == [0, 1, 2, 3, 4, 5]  # (2 + 1) × 2
        assert bench.lease() == []
        bench.play(leases[:3])
        assert bench.lease() == []  # ready groups are outstanding as well


@pytest.mark.parametrize("mode", ["async", "sync"])
def test_groups_that_wait_for_a_reward_do_not_hold_others_up(tmp_path: Path, mode: str) -> None:
    with opened(tmp_path, config=small_config(mode=mode)) as bench:
        bench.serve(0)
        for _ in range(5):
            bench.play(bench.lease(), reward=None, reward_deadline=4e9)
        at_once = 4 if mode == "async" else 2
        ledger = bench.owner.ledger()
        assert (ledger.handed, ledger.in_flight, ledger.ready) == (5 * at_once, 5 * at_once, 0)
        bench.play(bench.lease())
        assert bench.owner.append_batch(bench.request(1, max_staleness=0)) is not None


def test_groups_that_wait_for_a_reward_have_a_bound_of_their_own(tmp_path: Path) -> None:
    config = small_config()
    config = config.model_copy(update={"rollout": config.rollout.model_copy(update={"max_pending_groups": 6})})
    with opened(tmp_path, config=config) as bench:
        bench.serve(0)
        for expected in (4, 2, 0):
            leases = bench.lease()
            assert len(leases) == expected
            bench.play(leases, reward=None, reward_deadline=4e9)


def test_async_keeps_room_for_the_batch_that_is_on_its_way(tmp_path: Path) -> None:
    with opened(tmp_path) as bench:
        bench.serve(0)
        bench.play(bench.lease())
        lsn, _ = bench.cut(1)
        assert bench.lease() == []
        bench.decide_version(1, step=1, batch_lsn=lsn)
        assert bench.lease() == []  # the engines do not have it yet
        bench.owner.decide(Guard(version=1, verdict="refused", reason="gap"), bench.session)
        assert positions(bench.lease()) == [4, 5]


def test_async_hands_out_nothing_that_would_be_stale_when_a_batch_is_cut_before_its_parent_is_served(
    tmp_path: Path,
) -> None:
    with opened(tmp_path) as bench:
        bench.serve(0)
        bench.play(bench.lease())
        bench.decide_version(1, step=1, batch_lsn=bench.cut(1)[0])
        bench.play(bench.lease(), version=0)
        bench.cut(2, parent_version=1)  # version 1 is not served: what is handed out now, 0 would act, for batch 3
        assert bench.lease() == []
        bench.owner.decide(Served(version=1, gap=0.0), bench.session)
        assert len(bench.lease()) == 2


def test_a_skipped_batch_opens_admission_again(tmp_path: Path) -> None:
    with opened(tmp_path) as bench:
        bench.serve(0)
        bench.play(bench.lease())
        lsn, _ = bench.cut(1)
        bench.owner.decide(Skip(batch_lsn=lsn, step=1, branch=0, reason="nan"), bench.session)
        assert positions(bench.lease()) == [4, 5]


def test_sync_hands_out_one_step_at_a_time(tmp_path: Path) -> None:
    with opened(tmp_path, config=small_config(mode="sync")) as bench:
        bench.serve(0)
        bench.play(bench.lease())
        assert bench.lease() == []
        lsn, _ = bench.cut(1)
        assert bench.lease() == []
        bench.decide_version(1, step=1, batch_lsn=lsn)
        assert bench.lease() == []
        bench.serve(1, step=1, batch_lsn=lsn)
        assert positions(bench.lease()) == [2, 3]


def test_sync_shares_a_step_by_position_whoever_asks_first(tmp_path: Path) -> None:
    with opened(tmp_path, config=small_config(mode="sync")) as bench:
        bench.serve(0)
        assert positions(bench.lease(rank=1, world=2)) == [1]
        assert bench.lease(rank=1, world=2) == []
        assert positions(bench.lease(rank=0, world=2)) == [0]


def test_sync_replaces_a_quarantined_group(tmp_path: Path) -> None:
    with opened(tmp_path, config=small_config(mode="sync")) as bench:
        bench.serve(0)
        good, bad = bench.lease()
        bench.play([good])
        bench.play([bad], stop_reason=StopReason.ENV_ERROR, reward=None)
        assert positions(bench.lease()) == [2]
        assert bench.owner.ledger().ended["quarantined"] == 1


def test_no_more_than_the_remaining_steps_can_use(tmp_path: Path) -> None:
    with opened(tmp_path, config=small_config(steps=2, max_staleness=5)) as bench:
        bench.serve(0)
        leases = bench.lease()
        assert positions(leases) == [0, 1, 2, 3]
        bench.play(leases)
        lsn, _ = bench.cut(1)
        bench.serve(1, step=1, batch_lsn=lsn)
        assert bench.lease() == []
        lsn, _ = bench.cut(2, parent_version=1)
        bench.serve(2, step=2, batch_lsn=lsn)
        assert bench.lease() == []
        ledger = bench.owner.ledger()
        assert (ledger.handed, ledger.ended["trained"]) == (4, 4)


def test_a_lease_that_times_out_is_handed_out_again_and_its_late_episode_never_trained(tmp_path: Path) -> None:
    clock = Clock()
    with opened(tmp_path, clock=clock) as bench:
        bench.serve(0)
        old, *others = bench.lease()
        bench.owner.append([bench.make(old, 0)])
        bench.play(others)
        clock.now_s = 61.0
        (again,) = bench.lease()
        assert (again.task.position, again.task.attempt, again.missing) == (0, 1, (0, 1))
        assert again.lsn != old.lsn
        (ack,) = bench.owner.append([bench.make(old, 1)])
        assert ack.late
        assert not ack.duplicate
        bench.play([again])
        ledger = bench.owner.ledger()
        assert (ledger.handed, ledger.ended["abandoned"], ledger.episodes_late, ledger.ready) == (5, 1, 1, 4)
        _, batch = bench.cut(1)
        assert old.lsn not in {row.lease for row in batch.rows}


def test_an_episode_that_arrives_first_keeps_its_lease_from_timing_out_under_it(tmp_path: Path) -> None:
    clock = Clock()
    with opened(tmp_path, clock=clock) as bench:
        bench.serve(0)
        leases = bench.lease()
        bench.play(leases)
        clock.now_s = 1e6
        assert bench.lease() == []
        assert bench.owner.ledger().ready == len(leases)


def test_a_producer_that_attaches_again_loses_what_it_held(tmp_path: Path) -> None:
    with opened(tmp_path) as bench:
        bench.serve(0)
        old = bench.lease(max_tasks=1)[0]
        stale = bench.make(old, 0)
        second = Bench(bench.owner)
        assert second.epoch == bench.epoch + 1
        assert second.epoch >> 20 == bench.owner.epoch
        with pytest.raises(FencedError, match="rollout-0: epoch"):
            bench.owner.append([stale])
        with pytest.raises(FencedError):
            bench.lease()
        first, *_ = second.lease()
        assert (first.task.position, first.task.attempt) == (old.task.position, 1)
        assert bench.owner.ledger().ended["abandoned"] == 1


def test_producers_do_not_take_each_others_leases(tmp_path: Path) -> None:
    with opened(tmp_path) as bench:
        bench.serve(0)
        mine = bench.lease(max_tasks=2)
        other = Bench(bench.owner, producer="rollout-1", session=bench.session)
        assert positions(other.lease()) == [2, 3]
        bench.play(mine)
        assert bench.owner.ledger().ready == 2


def test_an_unknown_producer_is_fenced(tmp_path: Path) -> None:
    with opened(tmp_path) as bench, pytest.raises(FencedError, match="attach again"):
        bench.owner.lease("stranger", bench.epoch, max_tasks=1)


def test_a_reopened_store_completes_what_was_begun_with_the_missing_members_only(tmp_path: Path) -> None:
    with opened(tmp_path) as bench:
        bench.serve(0)
        empty, partial, full = bench.lease(max_tasks=3)
        bench.owner.append([bench.make(partial, 1)])
        bench.play([full])
        zombie = bench.make(partial, 0)
    with opened(tmp_path) as bench:
        assert bench.lease() == []  # no engine has told what it serves
        bench.serve(0)
        with pytest.raises(FencedError):
            bench.owner.append([zombie])
        first, second, fresh = bench.lease()
        assert (first.lsn, first.missing) == (empty.lsn, (0, 1))
        assert (second.lsn, second.missing) == (partial.lsn, (0,))
        assert fresh.task.position == 3
        assert bench.lease() == []
        bench.play([first, second])
        ledger = bench.owner.ledger()
        assert (ledger.handed, ledger.ready, ledger.episodes) == (4, 3, 6)


def test_a_reopened_store_abandons_what_is_too_old_to_complete(tmp_path: Path) -> None:
    with opened(tmp_path) as bench:
        bench.serve(0)
        partial, *rest = bench.lease()
        bench.owner.append([bench.make(partial, 0, version=0)])
        bench.play(rest)
        lsn, _ = bench.cut(1)
        bench.serve(1, step=1, batch_lsn=lsn)
        bench.serve(2, step=1, parent=1)
    with opened(tmp_path) as bench:
        bench.serve(3, step=1, parent=2)
        first, *_ = bench.lease()
        assert (first.task.position, first.task.attempt, first.missing) == (0, 1, (0, 1))
        assert bench.owner.ledger().ended["abandoned"] == 1


def test_a_reopened_store_abandons_what_was_begun_on_another_branch(tmp_path: Path) -> None:
    with opened(tmp_path) as bench:
        bench.serve(0)
        bench.lease(max_tasks=1)
        branch = Branch(branch=1, parent_branch=0, from_version=0, reason="roll-back")
        bench.owner.decide(branch, bench.session)
    with opened(tmp_path) as bench:
        bench.serve(0)
        first, *_ = bench.lease()
        assert (first.task.position, first.task.attempt, first.task.branch) == (0, 1, 1)


def test_what_was_closed_but_not_handed_again_before_a_crash_is_handed_after_it(tmp_path: Path) -> None:
    clock = Clock()
    with opened(tmp_path, clock=clock) as bench:
        bench.serve(0)
        bench.lease(max_tasks=1)
        clock.now_s = 61.0
        assert bench.owner.append([]) == []
        assert bench.owner.ledger().ended[Disposition.ABANDONED.value] == 1
    with opened(tmp_path) as bench:
        bench.serve(0)
        assert [(lease.task.position, lease.task.attempt) for lease in bench.lease(max_tasks=2)] == [(0, 1), (1, 0)]
    assert StoreView.open(tmp_path).ledger().balanced


def test_a_patient_asker_is_handed_tasks_as_soon_as_there_are_some(tmp_path: Path) -> None:
    with opened(tmp_path) as bench, ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(bench.lease, 1, wait_s=60.0)
        bench.serve(0)
        assert positions(waiting.result()) == [0]


def test_a_patient_learner_is_given_its_batch_as_soon_as_it_is_full(tmp_path: Path) -> None:
    with opened(tmp_path) as bench, ThreadPoolExecutor(1) as pool:
        bench.serve(0)
        first, second, *_ = bench.lease()
        bench.play([first])
        waiting = pool.submit(bench.owner.append_batch, bench.request(1), wait_s=60.0)
        bench.play([second])
        cut = waiting.result()
        assert cut is not None
        assert cut[1].step == 1


def test_only_so_many_wait_at_once_and_the_others_hear_at_once(tmp_path: Path) -> None:
    with ThreadPoolExecutor(MAX_WAITING + 1) as pool:
        with opened(tmp_path) as bench:
            waiting = [pool.submit(bench.lease, 1, wait_s=60.0) for _ in range(MAX_WAITING + 1)]
            answered, _ = wait(waiting, return_when=FIRST_COMPLETED)
            assert [asker.result() for asker in answered] == [[]]
            bench.serve(0)
            while sum(asker.done() for asker in waiting) < 5:  # four tasks, and the one that did not wait
                wait([asker for asker in waiting if not asker.done()], return_when=FIRST_COMPLETED)
        handed = [position for asker in waiting for position in positions(asker.result())]
    assert sorted(handed) == [0, 1, 2, 3]


def test_closing_ends_every_wait(tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as pool:
        with opened(tmp_path) as bench:
            waiting = pool.submit(bench.lease, wait_s=60.0)
            wait([waiting], timeout=0.0)
        assert waiting.result() == []
