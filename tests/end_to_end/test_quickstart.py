"""The main job with vLLM: shortened for every change; at full length, three seeds and their controls (`slow`)."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import pytest

from telemetry.logs import read_lines
from tests.end_to_end.commands import run_to_end

MINUTES = 60


def steps_of(summary: dict[str, Any]) -> list[dict[str, Any]]:
    lines = read_lines(Path(summary["folder"]) / "metrics.jsonl")
    return [line for line in lines if line["phase"] == "step"]


@pytest.mark.vllm
@pytest.mark.timeout(10 * MINUTES)
def test_the_shortened_main_job(tmp_path: Path) -> None:
    settings = {"steps": 12, "warm_start.steps": 30, "environment.held_out_items": 64, "evaluate.samples": 1}
    summary = run_to_end(settings, root=tmp_path)
    assert summary["state"] == "finished"
    assert summary["step"] == 12
    assert summary["ledger"]["balanced"]
    assert summary["held_out"]["items"] == 64
    assert summary["held_out"]["metric"] == "sampled_accuracy"
    steps = steps_of(summary)
    assert [line["step"] for line in steps] == list(range(1, 13))
    assert all(0 <= line["staleness"] <= 1 for line in steps)
    assert statistics.median(line["log_prob_gap"] for line in steps) < 0.1, "engine and learner have drifted apart"
    assert all(line["importance_ess"] > 0.9 for line in steps)
    assert Path(summary["report"]).stat().st_size > 10_000


@pytest.mark.slow
@pytest.mark.vllm
@pytest.mark.timeout(15 * MINUTES)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_reinforcement_raises_held_out_accuracy(tmp_path: Path, seed: int) -> None:
    held_out = run_to_end({"seed": seed}, root=tmp_path)["held_out"]
    assert held_out["items"] >= 512
    assert held_out["last"] - held_out["first"] >= 0.25
    assert held_out["last_scores"]["greedy_accuracy"] >= held_out["first_scores"]["greedy_accuracy"]


@pytest.mark.slow
@pytest.mark.vllm
@pytest.mark.timeout(15 * MINUTES)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_shuffled_rewards_raise_nothing(tmp_path: Path, seed: int) -> None:
    held_out = run_to_end({"seed": seed, "learner.shuffle_rewards": True}, root=tmp_path)["held_out"]
    assert held_out["last"] - held_out["first"] <= 0.03
