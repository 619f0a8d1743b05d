"""A branch on recorded batches: the same settings end where the run did, seeds are a bootstrap of whole groups."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from buffers.view import StoreView
from contracts.errors import RunFolderError
from contracts.records import Batch, Episode, Kind, Version
from loops.retrain import BranchStep, resample, retrain, summarise
from tests.crash.plain import NumpyLearner
from tests.unit.console.played import STEPS, copy, play
from tests.unit.learners.builders import make_batch


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return play(tmp_path_factory.mktemp("retrain"))


def versions(folder: Path) -> list[str]:
    records = StoreView.open(folder / "store").decisions(kinds=[Kind.VERSION])
    return [record.root_hash for _, record in records if isinstance(record, Version) and record.step]


def test_the_same_settings_end_where_the_run_did(folder: Path) -> None:
    learner, seen = NumpyLearner(), list[str]()
    history = StoreView.open(folder / "store")
    steps = retrain(history, folder=folder, learner=learner, on_step=lambda _: seen.append(learner.root_hash()))
    assert seen == versions(folder)
    assert [(one.step, one.num_steps, one.seed) for one in steps] == [(n, STEPS, 0) for n in range(1, STEPS + 1)]
    retrain(history, folder=folder, learner=learner, until=2)  # again from genesis
    assert learner.root_hash() == versions(folder)[1]


def test_a_seed_is_another_branch_and_always_the_same_one(folder: Path) -> None:
    history, ends = StoreView.open(folder / "store"), []
    for seed in (0, 1, 1, 2):
        learner = NumpyLearner()
        assert len(retrain(history, folder=folder, learner=learner, seed=seed)) == STEPS
        ends.append(learner.root_hash())
    assert ends[1] == ends[2]
    assert len(set(ends)) == 3


def test_groups_are_drawn_whole_with_replacement_and_in_order() -> None:
    batch, episodes = make_batch([[1, 0], [0.5, 0.5], [0, 1], [1, 1], [0.2, 0.4]])
    batch = Batch(**{**batch.__dict__, "zero_spread": (101, 103), "micro_batches": (4, 6)})
    counts: Counter[str] = Counter()
    for seed in range(1, 200):
        again, copies = resample(batch, episodes, seed=seed)
        tasks = [copies[place].task_id for place in range(0, 10, 2)]
        assert tasks == sorted(tasks)
        assert (
            [one.lease for one in copies] == [row.lease for row in again.rows] == list(np.repeat(range(-1, -6, -1), 2))
        )
        assert [one.member for one in copies] == [0, 1] * 5
        assert again.zero_spread == tuple(
            -number for number, task in enumerate(tasks, start=1) if task in ("task-1", "task-3")
        )
        assert (again.step, again.parent_version, again.micro_batches) == (batch.step, batch.parent_version, ())
        check_contents(copies, originals=episodes)
        counts.update(tasks)
    assert min(counts.values()) > 0.8 * 199
    assert max(counts.values()) < 1.2 * 199


def check_contents(copies: list[Episode], *, originals: list[Episode]) -> None:
    by_id = {one.episode_id: one for one in originals}
    assert all(one.reward == by_id[one.episode_id].reward for one in copies)
    assert all(one.steps == by_id[one.episode_id].steps for one in copies)


def test_another_step_draws_otherwise() -> None:
    rewards = [[1, 0]] * 12
    drawn = [
        [one.task_id for one in resample(*make_batch(rewards, step=step), seed=seed)[1]]
        for step, seed in [(1, 1), (2, 1), (1, 2)]
    ]
    assert drawn[0] != drawn[1] != drawn[2] != drawn[0]


def test_without_genesis_or_steps_there_is_no_branch(folder: Path, tmp_path: Path) -> None:
    mine = copy(folder, tmp_path)
    history = StoreView.open(mine / "store")
    with pytest.raises(RunFolderError, match="no finished step"):
        retrain(history, folder=mine, learner=NumpyLearner(), until=0)
    (genesis,) = (mine / "checkpoints").glob("step-000000-*")
    shutil.rmtree(genesis)
    with pytest.raises(RunFolderError, match="genesis is not in the folder"):
        retrain(history, folder=mine, learner=NumpyLearner())


def test_the_end_is_the_last_tenth() -> None:
    steps = [
        BranchStep(seed=0, step=step, num_steps=20, stats={"loss": float(step), **({"kl": 1.0} if step < 3 else {})})
        for step in range(1, 21)
    ]
    assert summarise(steps) == {"mean": {"loss": 10.5, "kl": 1.0}, "end": {"loss": 19.5}}
    assert summarise(steps[:1])["end"] == {"loss": 1.0, "kl": 1.0}
