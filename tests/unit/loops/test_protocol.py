"""The learner protocol stopped at every point at which it touches the store, the engine, or the learner's files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from buffers.owner import StoreOwner
from configs.schema import Replay, RunConfig
from contracts.errors import RunFolderError
from contracts.protocols import StepResult
from contracts.records import Batch, Episode, Kind, Served, Skip, Version
from tests.crash.plain import AtLast, NumpyLearner, PlainRun, plain_config

WATCHED = {
    "store": {"open_session", "attach", "lease", "append", "append_batch", "decide"},
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


def finish(folder: Path, *, config: RunConfig | None = None, num_items: int = 50) -> PlainRun:
    folder.mkdir(exist_ok=True)
    run = PlainRun(folder, config=config or plain_config(), num_items=num_items)
    run.go()
    run.close()
    return run


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
    (tmp_path / "whole").mkdir()
    with reopened(finish(tmp_path / "whole", config=config)) as whole:
        expected = versions(whole)
    assert len(expected) == config.steps + 1
    point = 0
    while True:
        point += 1
        assert point < MOST_POINTS
        folder = tmp_path / f"point-{point}"
        folder.mkdir()
        wire = Tripwire(point)
        run = PlainRun(folder, config=config, wrap=wire.wrap)
        try:
            run.go()
        except Crash:
            crashed = True
        else:
            crashed = False
        finally:
            run.close()
        after = finish(folder, config=config) if crashed else run
        with reopened(after) as owner:
            assert versions(owner) == expected, f"point {point}"
            check_ledger(owner, config=config, heard=run.acknowledged + (after.acknowledged if crashed else []))
        if not crashed:
            break
    assert point > 50, "the tripwire did not see the protocol"
    print(f"{point - 1} crash points")


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
    point = 0
    crashed = True
    while crashed:
        point += 1
        assert point < MOST_POINTS
        folder = tmp_path / f"point-{point}"
        folder.mkdir()
        run = PlainRun(folder, config=config, wrap=Tripwire(point).wrap, beside=AtLast())
        try:
            run.go()
        except Crash:
            crashed = True
        else:
            crashed = False
        finally:
            run.close()
        with reopened(run) as owner:
            before = versions(owner)
        after = finish(folder, config=config)
        with reopened(after) as owner:
            made = versions(owner)
            assert before.items() <= made.items(), f"point {point}"
            assert made.keys() == set(range(config.steps + 1))
            check_ledger(owner, config=config, heard=run.acknowledged + after.acknowledged)
    assert point > 30, "the tripwire did not see the protocol"


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
    assert in_batches == 2 * config.steps
    assert ledger.episodes_trained == 2 * in_batches
    by_id = dict(heard)
    for episode in owner.read(sorted(by_id.values())):
        assert by_id.pop(episode.episode_id) is not None
    assert not by_id, "acknowledged episodes were lost"


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
