"""A run whose loss of its own is none ends in one message; one that learns by it: test_own_task.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.end_to_end.commands import ROOT, TINY, options, ratchet

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]
LOSS = "def plain(log_probs, behaviour, advantages, owners):\n    return -advantages * log_probs\n"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """The user's folder: a run file and a module beside it."""
    (tmp_path / "losses_of_mine.py").write_text(LOSS)
    (tmp_path / "mine.yaml").write_text((ROOT / "configs" / "quickstart.yaml").read_text())
    return tmp_path


@pytest.mark.slow
def test_what_is_no_loss_ends_the_run_in_one_message(home: Path) -> None:
    (home / "losses_of_mine.py").write_text(LOSS.replace("-advantages * log_probs", "-(advantages * log_probs).mean()"))
    settings = {**TINY, "learner.loss": "losses_of_mine:plain", "root": home / "runs"}
    answer = ratchet("run", "mine.yaml", *options(settings), cwd=home)
    assert answer.returncode == 2, answer.stderr
    assert "The policy loss losses_of_mine:plain was asked for (learner.loss)." in answer.stderr
    assert "learners/own_loss.py" in answer.stderr
