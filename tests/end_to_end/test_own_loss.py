"""A run that learns by a loss of the user's own folder; one whose loss is none ends in one message."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from buffers.view import StoreView
from configs.objects import code_hash, load_object
from contracts.records import Kind, Session
from tests.end_to_end.commands import ROOT, TINY, options, ratchet

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]
LOSS = "def plain(log_probs, behaviour, advantages, owners):\n    return -advantages * log_probs\n"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """The user's folder: a run file and a module beside it."""
    (tmp_path / "losses_of_mine.py").write_text(LOSS)
    (tmp_path / "mine.yaml").write_text((ROOT / "configs" / "quickstart.yaml").read_text())
    return tmp_path


def test_a_loss_of_ones_own(home: Path) -> None:
    settings = {**TINY, "learner.loss": "losses_of_mine:plain", "learner.aggregation": "null", "root": home / "runs"}
    answer = ratchet("run", "mine.yaml", *options(settings), "--json", cwd=home)
    assert answer.returncode == 0, answer.stderr
    run = Path(json.loads(answer.stdout.splitlines()[-1])["folder"])
    sessions = [one for _, one in StoreView.open(run / "store").decisions(kinds=[Kind.SESSION])]
    (learner,) = [one for one in sessions if isinstance(one, Session) and one.role == "learner"]
    function = load_object("losses_of_mine:plain", asked="", folder=home)
    assert learner.fingerprint["loss"] == f"losses_of_mine:plain {code_hash(function)}"

    (home / "losses_of_mine.py").write_text("nothing is left of it\n")  # the run has its own copy
    replayed = ratchet("replay", str(run), "--json", cwd=home)
    assert replayed.returncode == 0, replayed.stderr
    assert json.loads(replayed.stdout)["equal"] == TINY["steps"]


@pytest.mark.slow
def test_what_is_no_loss_ends_the_run_in_one_message(home: Path) -> None:
    (home / "losses_of_mine.py").write_text(LOSS.replace("-advantages * log_probs", "-(advantages * log_probs).mean()"))
    settings = {**TINY, "learner.loss": "losses_of_mine:plain", "root": home / "runs"}
    answer = ratchet("run", "mine.yaml", *options(settings), cwd=home)
    assert answer.returncode == 2, answer.stderr
    assert "The policy loss losses_of_mine:plain was asked for (learner.loss)." in answer.stderr
    assert "learners/own_loss.py" in answer.stderr
