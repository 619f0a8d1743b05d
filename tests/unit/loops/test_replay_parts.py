"""Where a replay and its log part: the step, the records, the tensor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from buffers.view import StoreView
from contracts.protocols import StepResult, WeightSet
from contracts.records import Batch, Episode, Version
from loops.checksums import checksums, find_differing
from loops.replay import replay
from tests.crash.plain import NumpyLearner, PlainRun, plain_config
from tests.unit.console.played import STEPS, play


class Changed(NumpyLearner):
    """Computes other bits at one step."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self._other = step

    def step(
        self, batch: Batch, episodes: Sequence[Episode], *, before_change: Callable[[], None] = lambda: None
    ) -> StepResult:
        super().step(batch, episodes, before_change=before_change)
        if batch.step == self._other:
            self.logits = np.nextafter(self.logits, np.float32(9))
        return StepResult(root_hash=self.root_hash(), stats={})


def test_the_first_step_that_differs_names_its_records_and_tensors(tmp_path: Path) -> None:
    folder = play(tmp_path)
    view = StoreView.open(folder / "store")
    assert all(one.equal and not one.tensors for one in replay(view, folder=folder, learner=NumpyLearner()))
    steps = replay(view, folder=folder, learner=Changed(3))
    assert len(steps) == STEPS
    first = next(one for one in steps if not one.equal)
    records = dict(view.decisions())
    version, batch = records[first.version_lsn], records[first.batch_lsn]
    assert isinstance(version, Version)
    assert isinstance(batch, Batch)
    assert (first.step, version.step, batch.step, version.batch_lsn) == (3, 3, 3, first.batch_lsn)
    assert first.logged == version.root_hash != first.computed
    assert first.tensors == ("logits",)


def test_only_those_that_differ_are_named() -> None:
    tensors = {"b": np.ones(3, np.float32), "a": np.zeros((2, 2), np.float32).T, "c": np.arange(4)}
    weights = WeightSet(version=1, root_hash="", tensors=tensors, dtypes={})
    logged = checksums(weights)
    assert len(logged) == 3
    assert find_differing(weights, logged) == ()
    other = WeightSet(version=1, root_hash="", tensors={**tensors, "b": -tensors["b"], "c": np.arange(1, 5)}, dtypes={})
    assert find_differing(other, logged) == ("b", "c")
    assert find_differing(other, ()) == ()


def test_a_skipped_step_is_no_gap(tmp_path: Path) -> None:
    run = PlainRun(tmp_path, config=plain_config())
    run.learner.__init__(fail_on_steps=[3])  # type: ignore[misc]
    run.go()
    run.close()
    steps = replay(StoreView.open(tmp_path / "store"), folder=tmp_path, learner=NumpyLearner())
    assert [one.step for one in steps] == [1, 2, 4, 5, 6]
    assert all(one.equal for one in steps)
