"""The learner protocol stopped at every point at which it touches the store, the engine, or the learner's files."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from buffers.groups import Stage
from buffers.owner import StoreOwner
from configs.schema import Replay, RunConfig
from contracts.errors import RunFolderError
from contracts.protocols import StepResult
from contracts.records import (
    Ack,
    Batch,
    ControlRecord,
    Episode,
    Feedback,
    Hold,
    Kind,
    Review,
    Row,
    Served,
    Skip,
    Version,
)
from tests.crash.plain import AtLast, DigitCodec, GuessingGame, NumpyLearner, PlainRun, plain_config

WATCHED = {
    "store": {
        "open_session",
        "attach",
        "lease",
        "append",
        "append_feedback",
        "hold",
        "review",
        "append_batch",
        "decide",
    },
    "fleet": {"push"},
    "learner": {"save"},
}
FEW = 4  # items: each comes back soon, and a stored success of it is of use
MOST_POINTS = 400  # a run has about 120; a loop that never ends is a fault


class Crash(BaseException):
    """The process ends here."""


class Tripwire:
    """Counts the calls of all watched ports, before and after each; crashes at the chosen one."""

    def __init__(self, point: int) -> None:
        self.point, self.passed = point, 0

    def pass_by(self) -> None:
        self.passed += 1
        if self.passed == self.point:
            raise Crash

    def wrap(self, name: str, port: Any) -> Any:
        return Watched(port, WATCHED[name], self)


class Watched:
    def __init__(self, port: Any, names: set[str], wire: Tripwire) -> None:
        self._port, self._names, self._wire = port, names, wire

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._port, name)
        if name not in self._names:
            return method

        def call(*args: Any, **kwargs: Any) -> Any:
            self._wire.pass_by()
            result = method(*args, **kwargs)
            self._wire.pass_by()
            return result

        return call


class Outside:
    """A store whose rewards come later, from outside: some groups are held, rewarded wrongly, rightly, then reviewed.

    Whoever rewards looks at what waits before each batch is asked for, so that a crash only makes it late.
    """

    def __init__(self, port: Any, owner: StoreOwner) -> None:
        self._port, self._owner, self._game = port, owner, GuessingGame()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._port, name)

    def append(self, episodes: Sequence[Episode]) -> list[Ack]:
        bare = [dataclasses.replace(one, reward=None, reward_deadline=1e12) for one in episodes]
        acks: list[Ack] = self._port.append(bare)
        return acks

    def append_batch(self, request: Any, *, wait_s: float = 0.0) -> Any:
        fold = self._owner._state.fold
        for lease in sorted(fold.stages[Stage.PENDING]):
            if fold.groups[lease].task.position % 2:
                self._port.hold(Hold(lease=lease, reason="every other one is looked at"))
            else:
                self._reward(lease)
        for lease in sorted(fold.stages[Stage.HELD]):
            self._reward(lease, wrong=0.5)
            self._reward(lease)
            self._port.review(Review(lease=lease, accepted=True, reason="it is fine"))
        return self._port.append_batch(request, wait_s=wait_s)

    def _reward(self, lease: int, *, wrong: float = 0.0) -> None:
        group = self._owner._state.fold.groups[lease]
        for lsn in sorted(group.lsns.values()):
            (episode,) = self._owner.read([lsn])
            answer = DigitCodec().decode(episode.steps[0].action.astype(np.int32))
            (verdict,) = self._game.score([("train", group.task.index, [answer])])
            assert verdict.reward is not None
            reward = verdict.reward + wrong
            self._port.append_feedback(Feedback(episode_id=episode.episode_id, episode_lsn=lsn, reward=reward))


def finish(folder: Path, *, config: RunConfig | None = None, num_items: int = 50, outside: bool = False) -> PlainRun:
    folder.mkdir(exist_ok=True)
    run = begin(folder, config=config or plain_config(), wire=Tripwire(0), outside=outside, num_items=num_items)
    run.go()
    run.close()
    return run


def begin(
    folder: Path,
    *,
    config: RunConfig,
    wire: Tripwire,
    outside: bool,
    num_items: int = 50,
    beside: Executor | None = None,
) -> PlainRun:
    def wrap(name: str, port: Any) -> Any:
        watched = wire.wrap(name, port)
        return Outside(watched, port) if outside and name == "store" else watched

    return PlainRun(folder, config=config, wrap=wrap, num_items=num_items, beside=beside)


def crashes(
    folder: Path, *, config: RunConfig, fewest: int, overlapped: bool = False, outside: bool = False, stride: int = 1
) -> Iterator[tuple[int, PlainRun, bool]]:
    """A run stopped at its first call to a port, one stopped at its second, and so on to one that is not stopped: all
    are over. `fewest`: points that there are at least, else nothing was tried. `stride`: every so many points alone."""
    for point in range(1, MOST_POINTS, stride):
        here = folder / f"point-{point}"
        here.mkdir()
        beside = AtLast() if overlapped else None
        run = begin(here, config=config, wire=Tripwire(point), outside=outside, beside=beside)
        try:
            run.go()
            crashed = False
        except Crash:
            crashed = True
        finally:
            run.close()
        yield point, run, crashed
        if not crashed:
            assert point > fewest, "the tripwire did not see the protocol"
            print(f"{point - 1} crash points")
            return
    raise AssertionError(f"still stopped at call {MOST_POINTS}")


@contextmanager
def reopened(run: PlainRun) -> Iterator[StoreOwner]:
    """The store of a run that is over, opened once more: what is on the disk, and not what the run had in memory."""
    again = PlainRun(run.folder, config=run.config)
    yield again.owner
    again.close()


def versions(owner: StoreOwner) -> dict[int, str]:
    """Root hash by step."""
    records = owner.decisions(kinds=[Kind.VERSION])
    made = [record for _, record in records if isinstance(record, Version)]
    assert len({version.version for version in made}) == len(made), "a version number was used twice"
    assert len({version.step for version in made}) == len(made), "a step made two versions"
    return {version.step: version.root_hash for version in made}


@pytest.mark.timeout(600)  # 78 runs with all their fsyncs: 5 CPU-seconds, and whatever the disk takes
@pytest.mark.parametrize(
    "config",
    [
        plain_config(steps=4),
        pytest.param(plain_config(), marks=pytest.mark.slow),
        pytest.param(plain_config(loss="dapo", steps=3), marks=pytest.mark.slow),
        pytest.param(plain_config(steps=4, replay={"enabled": True}), marks=pytest.mark.slow),
    ],
    ids=["grpo", "grpo, a checkpoint more", "dapo, which replaces groups", "grpo with success replay"],
)
def test_every_crash_point_recovers_to_the_same_bits(tmp_path: Path, config: RunConfig) -> None:
    check_recovery(tmp_path, config)


def check_recovery(tmp_path: Path, config: RunConfig, *, outside: bool = False, stride: int = 1) -> None:
    """Whatever point a run stops at, it ends as one that was not stopped."""
    with reopened(finish(tmp_path / "whole", config=config, outside=outside)) as whole:
        expected = versions(whole)
    assert len(expected) == config.steps + 1
    for point, run, crashed in crashes(tmp_path, config=config, fewest=50, outside=outside, stride=stride):
        after = finish(run.folder, config=config, outside=outside) if crashed else run
        with reopened(after) as owner:
            assert versions(owner) == expected, f"point {point}"
            check_ledger(owner, config=config, heard=run.acknowledged + (after.acknowledged if crashed else []))


def sampling(sampler: str) -> RunConfig:
    small = {"segment_mib": 1, "control_segment_mib": 1, "reserve_mib": 0, "index_map_mib": 16}
    return plain_config(steps=4, store={**small, "sampler": sampler})


@pytest.mark.timeout(600)
@pytest.mark.parametrize("stride", [11, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("sampler", ["uniform", "prioritised"])
def test_every_crash_point_of_a_run_that_learns_from_groups_again(tmp_path: Path, sampler: str, stride: int) -> None:
    config = sampling(sampler)
    check_recovery(tmp_path, config, stride=stride)
    with reopened(finish(tmp_path / "whole", config=config)) as owner:
        batches = [record for _, record in owner.decisions(kinds=[Kind.BATCH]) if isinstance(record, Batch)]
        assert any(row.replayed for batch in batches for row in batch.rows)
        assert bool(owner._state.fold.priorities.items()) is (sampler == "prioritised")


@pytest.mark.timeout(600)
@pytest.mark.parametrize("stride", [17, pytest.param(1, marks=pytest.mark.slow)])
def test_every_crash_point_of_a_run_whose_rewards_come_late(tmp_path: Path, stride: int) -> None:
    """FEEDBACK, twice and corrected, HOLD and REVIEW: a crash before or after each changes no bit."""
    check_recovery(tmp_path, plain_config(steps=4), outside=True, stride=stride)
    with reopened(finish(tmp_path / "inside", config=plain_config(steps=4))) as inside:
        expected = versions(inside)
    with reopened(finish(tmp_path / "whole", config=plain_config(steps=4), outside=True)) as outside:
        assert versions(outside) == expected


@pytest.mark.parametrize("point", [30, 75])
def test_a_run_that_replays_successes_recovers_to_the_same_bits(tmp_path: Path, point: int) -> None:
    config = plain_config(steps=12, replay={"enabled": True})
    with reopened(finish(tmp_path / "whole", config=config, num_items=FEW)) as whole:
        expected = versions(whole)
        batches = [record for _, record in whole.decisions(kinds=[Kind.BATCH]) if isinstance(record, Batch)]
    assert sum(row.replayed for batch in batches for row in batch.rows) >= 1
    assert versions_without_replay(tmp_path / "without", config) != expected, "replayed rows are learned from"
    (tmp_path / "crashed").mkdir()
    run = PlainRun(tmp_path / "crashed", config=config, wrap=Tripwire(point).wrap, num_items=FEW)
    with pytest.raises(Crash):
        run.go()
    run.close()
    with reopened(finish(run.folder, config=config, num_items=FEW)) as owner:
        assert versions(owner) == expected
        check_ledger(owner, config=config, heard=run.acknowledged)


def versions_without_replay(folder: Path, config: RunConfig) -> dict[int, str]:
    without = config.model_copy(update={"replay": Replay()})
    with reopened(finish(folder, config=without, num_items=FEW)) as owner:
        return versions(owner)


@pytest.mark.timeout(600)
def test_every_crash_point_of_an_overlapped_run_loses_nothing(tmp_path: Path) -> None:
    """Published at the last moment: the next batch is cut, and computed, while a version waits to be served."""
    config = plain_config(mode="async", steps=3)
    for point, run, _ in crashes(tmp_path, config=config, fewest=30, overlapped=True):
        with reopened(run) as owner:
            before = versions(owner)
        after = finish(run.folder, config=config)
        with reopened(after) as owner:
            made = versions(owner)
            assert before.items() <= made.items(), f"point {point}"
            assert made.keys() == set(range(config.steps + 1))
            check_ledger(owner, config=config, heard=run.acknowledged + after.acknowledged)


def test_an_overlapped_step_waits_for_its_parent_before_it_changes_a_weight(tmp_path: Path) -> None:
    run = PlainRun(tmp_path, config=plain_config(mode="async"), beside=AtLast())
    run.go()
    records = [record for _, record in run.owner.decisions(kinds=[Kind.BATCH, Kind.VERSION, Kind.SERVED])]
    run.close()
    served = -1
    early = 0  # batches cut before their parent was served
    for record in records:
        if isinstance(record, Served):
            served = record.version
        elif isinstance(record, Batch):
            early += record.parent_version != served
        elif isinstance(record, Version):
            assert record.parent == served
    assert early


def check_ledger(owner: StoreOwner, *, config: RunConfig, heard: list[tuple[str, int]]) -> None:
    ledger = owner.ledger()
    assert ledger.balanced
    replaced = config.learner.formula().dynamic_sampling
    in_batches = ledger.ended["trained"] + (0 if replaced else ledger.ended["zero_spread"])
    assert in_batches == config.new_groups_per_step * config.steps
    again = [row for _, one in owner.decisions(kinds=[Kind.BATCH]) for row in rows_again(one)]
    assert ledger.episodes_trained == 2 * in_batches + len(again)
    by_id = dict(heard)
    for episode in owner.read(sorted(by_id.values())):
        assert by_id.pop(episode.episode_id) is not None
    assert not by_id, "acknowledged episodes were lost"


def rows_again(record: ControlRecord) -> list[Row]:
    """Rows of groups that were learned from before."""
    assert isinstance(record, Batch)
    new = {row.lease for row in record.rows if not row.replayed}
    return [row for row in record.rows if row.lease not in new]


def test_another_base_model_is_refused(tmp_path: Path) -> None:
    run = PlainRun(tmp_path, config=plain_config(), base="a" * 64)
    run.go()
    run.close()
    again = PlainRun(tmp_path, config=plain_config(), base="b" * 64)
    with pytest.raises(RunFolderError, match="base model is another"):
        again.go()
    again.close()


def test_a_batch_that_fails_twice_is_skipped(tmp_path: Path) -> None:
    run = PlainRun(tmp_path, config=plain_config())
    run.learner.__init__(fail_on_steps=[3])  # type: ignore[misc]
    run.go()
    skips = [record for _, record in run.owner.decisions(kinds=[Kind.SKIP]) if isinstance(record, Skip)]
    assert [skip.step for skip in skips] == [3]
    ledger = run.owner.ledger()
    run.close()
    assert ledger.balanced
    assert ledger.ended["skipped"] == 2
    with reopened(run) as owner:
        assert versions(owner).keys() == {0, 1, 2, 4, 5, 6}


@pytest.mark.parametrize("failing", [[], [3]])
def test_the_engine_sleeps_while_the_learner_computes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: list[int]
) -> None:
    """And is awake whenever it is asked, also after a batch that was skipped: the engine itself asserts that."""
    run = PlainRun(tmp_path, config=plain_config())
    run.learner.__init__(fail_on_steps=failing)  # type: ignore[misc]
    compute, slept = run.learner.step, list[bool]()

    def look(batch: Batch, episodes: Sequence[Episode], *, before_change: Callable[[], None]) -> StepResult:
        slept.append(run.engine.asleep)
        return compute(batch, episodes, before_change=before_change)

    monkeypatch.setattr(run.learner, "step", look)
    run.go()
    run.close()
    assert slept == [True] * (run.config.steps + len(failing))
    assert run.loop.step == run.config.steps
    assert not run.engine.asleep


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_the_game_is_learned(tmp_path: Path, mode: str) -> None:
    run = PlainRun(tmp_path, config=plain_config(mode=mode, steps=60))
    run.go()
    run.close()
    first, last = NumpyLearner(), run.learner
    assert last.logits[:3].mean() - last.logits[3] > first.logits[:3].mean() - first.logits[3]


def test_batches_name_only_their_own_parents(tmp_path: Path) -> None:
    run = finish(tmp_path)
    with reopened(run) as owner:
        batches = [record for _, record in owner.decisions(kinds=[Kind.BATCH]) if isinstance(record, Batch)]
    assert [batch.parent_version for batch in batches] == list(range(run.config.steps))
