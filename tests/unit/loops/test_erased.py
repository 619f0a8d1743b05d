"""A replay over erased experience says which steps cannot be computed again, and goes on at the next checkpoint."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from buffers.erasure import Choice, erase
from buffers.view import StoreView
from contracts.errors import RunFolderError
from contracts.records import Batch, Checkpoint
from loops.replay import rebuild, replay
from loops.retrain import retrain
from tests.crash.plain import NumpyLearner, PlainRun, plain_config


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Six steps, checkpoints of 0, 4 and 6 are kept; an episode of step 2 is erased."""
    plain = PlainRun(tmp_path, config=plain_config(steps=6))
    plain.go()
    plain.close()
    (tmp_path / "config.yaml").write_text("{}\n")
    decisions = [record for _, record in StoreView.open(tmp_path / "store").decisions()]
    (second,) = [one for one in decisions if isinstance(one, Checkpoint) and one.step == 2]
    shutil.rmtree(tmp_path / second.folder)
    batches = [one for one in decisions if isinstance(one, Batch)]
    done = erase(tmp_path, Choice(lsns=frozenset((batches[1].rows[0].episode_lsn,))), reason="asked for")
    assert done.versions == (2,)
    return tmp_path


def test_steps_up_to_the_next_checkpoint_are_lost_and_the_others_equal(run: Path) -> None:
    steps = replay(StoreView.open(run / "store"), folder=run, learner=NumpyLearner())
    assert [step.step for step in steps if step.lost] == [2, 3, 4]
    assert [step.step for step in steps if step.equal] == [1, 5, 6]


def test_a_version_is_rebuilt_from_a_checkpoint_after_it_or_refused(run: Path) -> None:
    view = StoreView.open(run / "store")
    for version in (1, 4, 5, 6):
        assert rebuild(view, folder=run, learner=NumpyLearner(), version=version).version == version
    with pytest.raises(RunFolderError, match="1 of its 4 episodes were erased or trimmed"):
        rebuild(view, folder=run, learner=NumpyLearner(), version=3)
    with pytest.raises(RunFolderError, match=r"step 2 of .* again"):
        retrain(view, folder=run, learner=NumpyLearner())


def test_a_resumed_run_goes_on(run: Path) -> None:
    plain = PlainRun(run, config=plain_config(steps=8))
    plain.go()
    assert plain.owner.ledger().balanced
    plain.close()
