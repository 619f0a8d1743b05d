"""Success replay: the rule, what BATCH records say of it, and that a fold over them alone gives the same store."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import pytest

from buffers.fold import SUCCESSES_A_TASK
from configs.schema import Replay, RunConfig
from contracts.records import Batch, Kind, Row
from tests.unit.buffers.bench import GROUP_SIZE, GROUPS_PER_STEP, Bench, opened, small_config


def with_replay(**settings: object) -> RunConfig:
    return small_config(max_staleness=100).model_copy(
        update={"replay": Replay.model_validate({"enabled": True, **settings})}
    )


class TwoTasks(Bench):
    """Every step tries task `a` and task `b` once more."""

    def __init__(self, bench: Bench) -> None:
        self.__dict__.update(bench.__dict__)
        self.step = 0
        self.serve(0)

    def try_both(self, rewards: tuple[float, float], others: tuple[float, float] = (0.0, 1.0)) -> tuple[int, Batch]:
        """One batch; the rewards of the members of task a's group, and of task b's."""
        self.step += 1
        leases = self.lease(max_tasks=GROUPS_PER_STEP)
        for lease in leases:
            given = rewards if lease.task.task_id == "a" else others
            self.owner.append([self.make(lease, member, reward=given[member]) for member in lease.missing])
        lsn, batch = self.cut(self.step, parent_version=self.step - 1, max_staleness=100, seed=self.step)
        self.serve(self.step, step=self.step, batch_lsn=lsn)
        return lsn, batch


def name_two_tasks(position: int) -> tuple[str, int]:
    return "ab"[position % 2], position


def rows_of(batch: Batch, bench: Bench, task_id: str) -> list[Row]:
    """The rows of the group of `task_id`."""
    fold = bench.owner._state.fold
    return [row for row in batch.rows if fold.groups[row.lease].task.task_id == task_id]


def test_a_failed_group_gets_one_stored_success_and_others_stay(tmp_path: Path) -> None:
    with opened(tmp_path, config=with_replay(), source=name_two_tasks) as plain:
        bench = TwoTasks(plain)
        _, nothing_stored = bench.try_both((0.0, 0.0))
        assert not any(row.replayed for row in nothing_stored.rows)
        assert len(nothing_stored.zero_spread) == 1
        _, mixed = bench.try_both((0.0, 1.0))
        assert not any(row.replayed for row in mixed.rows)
        success = rows_of(mixed, bench, "a")[1]
        _, failed = bench.try_both((0.0, 0.0))
        first, second = rows_of(failed, bench, "a")
        assert (first.episode_lsn, first.reward_lsn, first.replayed) == (success.episode_lsn, success.reward_lsn, True)
        assert (first.lease, second.replayed) == (second.lease, False)
        assert failed.zero_spread == ()
        assert not any(row.replayed for row in rows_of(failed, bench, "b"))
        _, well = bench.try_both((1.0, 1.0))
        assert not any(row.replayed for row in well.rows)
        assert bench.owner.ledger().balanced


@pytest.mark.parametrize(
    ("rewards", "settings", "is_replayed"),
    [
        ((0.0, 0.2), {}, False),  # std 0.1
        ((0.15, 0.15), {}, True),  # alike, low, and yet each a success: all of it is remembered
        ((0.25, 0.25), {}, False),  # alike, not low
        ((0.0, 0.2), {"trigger_std": 0.2}, True),
        ((0.25, 0.25), {"trigger_mean": 0.3}, True),
        ((0.0, 0.0), {"enabled": False}, False),
    ],
)
def test_the_trigger(
    tmp_path: Path, rewards: tuple[float, float], settings: dict[str, object], is_replayed: bool
) -> None:
    with opened(tmp_path, config=with_replay(**settings), source=name_two_tasks) as plain:
        bench = TwoTasks(plain)
        bench.try_both((0.0, 1.0))
        _, batch = bench.try_both(rewards)
        assert [row.replayed for row in rows_of(batch, bench, "a")] == [is_replayed, False]
        fresh = [row for row in batch.remembered if bench.owner._state.fold.groups[row.lease].task.task_id == "a"]
        expected = sum(reward > 0.1 for reward in rewards) if settings.get("enabled", True) else 0
        assert len(fresh) == expected


def test_a_control_replays_failures_instead(tmp_path: Path) -> None:
    with opened(tmp_path, config=with_replay(source="failure"), source=name_two_tasks) as plain:
        bench = TwoTasks(plain)
        _, stored = bench.try_both((0.0, 1.0))
        _, batch = bench.try_both((0.0, 0.0))
        assert rows_of(batch, bench, "a")[0].episode_lsn == rows_of(stored, bench, "a")[0].episode_lsn


def test_the_oldest_of_eight_leaves_and_a_restart_forgets_nothing(tmp_path: Path) -> None:
    config = with_replay()
    with opened(tmp_path, config=config, source=name_two_tasks) as plain:
        bench = TwoTasks(plain)
        kept = []
        for _ in range(SUCCESSES_A_TASK + 1):
            _, batch = bench.try_both((0.0, 1.0))
            kept.append(rows_of(batch, bench, "a")[1].episode_lsn)
        assert [lsn for lsn, _ in bench.owner._state.fold.successes["a"]] == kept[1:]
        step = bench.step
    with opened(tmp_path, config=config, source=name_two_tasks) as plain:
        assert [lsn for lsn, _ in plain.owner._state.fold.successes["a"]] == kept[1:]
        plain.serve(step + 1, step=step)
        leases = plain.lease(max_tasks=GROUPS_PER_STEP)
        for lease in leases:
            plain.owner.append([plain.make(lease, member, reward=0.0) for member in lease.missing])
        _, batch = plain.cut(step + 1, parent_version=step + 1, max_staleness=100)
        assert rows_of(batch, plain, "a")[0].episode_lsn in kept[1:]


def test_batches_alone_tell_what_is_stored_and_what_was_replayed(tmp_path: Path) -> None:
    """Sampling is deterministic given the log: here it is derived again from the records."""
    with opened(tmp_path, config=with_replay(), source=name_two_tasks) as plain:
        bench = TwoTasks(plain)
        outcomes = [(0.0, 1.0), (0.0, 0.0), (1.0, 1.0), (0.0, 0.0), (0.0, 0.0), (1.0, 0.0), (0.0, 0.0)] * 2
        for rewards in outcomes:
            bench.try_both(rewards, others=rewards[::-1])
        fold = bench.owner._state.fold
        stored: dict[str, list[int]] = defaultdict(list)
        num_replayed = 0
        for _, record in bench.owner.decisions(kinds=[Kind.BATCH]):
            assert isinstance(record, Batch)
            episodes = bench.owner.read([row.episode_lsn for row in record.rows])
            reward_of = {row.episode_lsn: one.reward for row, one in zip(record.rows, episodes, strict=True)}
            for place in range(0, len(record.rows), GROUP_SIZE):
                group = record.rows[place : place + GROUP_SIZE]
                task = fold.groups[group[0].lease].task.task_id
                failed = all(reward_of[row.episode_lsn] == 0.0 for row in group[1:]) and len(stored[task]) > 0
                assert not any(row.replayed for row in group[1:])
                if group[0].replayed:
                    num_replayed += 1
                    assert failed
                    assert group[0].episode_lsn in stored[task]
            for row in record.remembered:
                assert reward_of[row.episode_lsn] == 1.0
                task = fold.groups[row.lease].task.task_id
                stored[task] = [*stored[task], row.episode_lsn][-SUCCESSES_A_TASK:]
        assert num_replayed == 2 * outcomes.count((0.0, 0.0))
        assert {task: [lsn for lsn, _ in fold.successes[task]] for task in stored} == stored
