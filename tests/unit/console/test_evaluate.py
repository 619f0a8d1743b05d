"""`ratchet evaluate`: scores with their intervals, and bad input before anything is loaded."""

from __future__ import annotations

from pathlib import Path

from typer.testing import CliRunner

from configs.loader import dump, load
from console.evaluate import render
from console.main import app
from tests.unit.console.played import copy
from tests.unit.house.guard import ROOT


def test_scores_are_shown_with_their_intervals() -> None:
    scores = {"sampled_accuracy": 0.5, "sampled_accuracy_low": 0.25, "sampled_accuracy_high": 0.75, "unscored": 0.0}
    passes = {"pass@2": 0.6, "pass@2_low": 0.4, "pass@2_high": 0.8}
    assert render({**scores, **passes}) == [
        "sampled_accuracy: 0.5000 [0.2500, 0.7500]",
        "unscored: 0.0000",
        "pass@2: 0.6000 [0.4000, 0.8000]",
    ]


def test_a_run_that_is_evaluated_greedily_has_no_samples(finished_run: Path, tmp_path: Path) -> None:
    folder = copy(finished_run, tmp_path)
    (folder / "config.yaml").write_text(dump(load(ROOT / "configs" / "control_cartpole.yaml")))
    answer = CliRunner().invoke(app, ["evaluate", str(folder), "--samples", "8"])
    assert answer.exit_code == 2
    assert "CartPole-v1" in answer.stderr
    assert "leave --samples out" in answer.stderr


def test_no_samples_at_all_is_bad_input(finished_run: Path) -> None:
    assert CliRunner().invoke(app, ["evaluate", str(finished_run), "--samples", "0"]).exit_code == 2
