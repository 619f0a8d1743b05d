"""The tutorial's commands in an empty folder outside the repository; at full length when `slow`."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from buffers.view import StoreView
from configs.objects import code_hash, load_object
from contracts.records import Kind, Session
from tests.end_to_end.commands import options, ratchet
from tests.end_to_end.test_documents import commands

SHORT = {
    "steps": 3,
    "warm_start.steps": 20,
    "warm_start.batch_size": 32,
    "learner.groups_per_step": 4,
    "learner.group_size": 4,
    "environment.train_items": 500,
    "environment.held_out_items": 16,
    "evaluate.samples": 1,
    "model.init.layers": 1,
    "model.init.width": 48,
    "store.segment_mib": 4,
    "store.reserve_mib": 0,
}
OWN_LOSS = {"learner.loss": "losses_of_mine:plain", "learner.aggregation": "null"}
LOSS = "def plain(log_probs, behaviour, advantages, owners):\n    return -advantages * log_probs\n"
TUTORIAL = "docs/tutorial/own_task.md"
MINUTES = 60


@pytest.mark.ray
@pytest.mark.timeout(10 * MINUTES)
def test_the_tutorials_commands_run_in_order(tmp_path: Path) -> None:
    """With a loss of the user's own beside the task, which the tutorial leaves out."""
    lines = [words[1:] for words in commands(TUTORIAL)]
    assert [words[0] for words in lines] == ["init", "run", "status"]
    mine = tmp_path / "mine"
    for words in lines:
        answer = ratchet(*words, *(options({**SHORT, **OWN_LOSS}) if words[0] == "run" else []), cwd=tmp_path)
        assert answer.returncode == 0, answer.stderr
        (mine / "losses_of_mine.py").write_text(LOSS)
    run = (tmp_path / "runs" / "latest").resolve()
    assert (run / "task" / "task.py").read_text() == (mine / "task.py").read_text()
    sessions = [one for _, one in StoreView.open(run / "store").decisions(kinds=[Kind.SESSION])]
    (learner,) = [one for one in sessions if isinstance(one, Session) and one.role == "learner"]
    function = load_object("losses_of_mine:plain", asked="", folder=mine)
    assert learner.fingerprint["loss"] == f"losses_of_mine:plain {code_hash(function)}"

    for name in ("task.py", "losses_of_mine.py"):
        (mine / name).write_text("raise RuntimeError('edited while the run was away')\n")
    replayed = ratchet("replay", "latest", "--json", cwd=tmp_path)
    assert replayed.returncode == 0, replayed.stderr
    assert json.loads(replayed.stdout)["equal"] == SHORT["steps"]
    more = ratchet("resume", "latest", "--set", "steps=4", cwd=tmp_path)
    assert more.returncode == 0, more.stderr
    refused = ratchet("run", "mine/run.yaml", cwd=tmp_path)
    assert refused.returncode == 2
    assert "edited while the run was away" in refused.stderr
    assert "task.py, line 1" in refused.stderr


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(10 * MINUTES)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_example_learns(tmp_path: Path, seed: int) -> None:
    started = time.monotonic()
    assert ratchet("init", "mine", cwd=tmp_path).returncode == 0
    answer = ratchet("run", "mine/run.yaml", "--set", f"seed={seed}", "--json", cwd=tmp_path)
    assert answer.returncode == 0, answer.stderr
    print(f"{time.monotonic() - started:.0f} s from init to report")
    held_out = json.loads(answer.stdout.splitlines()[-1])["held_out"]
    assert held_out["last"] - held_out["first"] >= 0.2
    assert held_out["last_scores"]["greedy_accuracy"] > held_out["first_scores"]["greedy_accuracy"]
