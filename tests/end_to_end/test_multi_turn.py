"""Several turns, whole: engine and learner agree over all turns; at full length, what remarks are worth."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from buffers.view import StoreView
from contracts.records import Batch, Kind
from telemetry.logs import read_lines
from tests.end_to_end.commands import options, ratchet

MINUTES = 60
SHORT: Mapping[str, object] = {
    "steps": 6,
    "warm_start.steps": 30,
    "learner.groups_per_step": 8,
    "learner.group_size": 4,
    "rollout.chunk": 8,
    "environment.train_items": 500,
    "environment.held_out_items": 32,
    "evaluate.samples": 3,
    "store.segment_mib": 4,
    "store.reserve_mib": 0,
}


def run_to_end(settings: Mapping[str, object], *, root: Path) -> dict[str, Any]:
    answer = ratchet("run", "configs/multi_turn.yaml", *options({**settings, "root": root}), "--json", timeout_s=840)
    assert answer.returncode == 0, answer.stderr
    summary: dict[str, Any] = json.loads(answer.stdout.splitlines()[-1])
    return summary


@pytest.mark.parametrize(
    "backend",
    [
        pytest.param("vllm", marks=pytest.mark.vllm),
        pytest.param("transformers", marks=[pytest.mark.ray, pytest.mark.slow]),
    ],
)
@pytest.mark.timeout(10 * MINUTES)
def test_a_short_run(tmp_path: Path, backend: str) -> None:
    summary = run_to_end({**SHORT, "engine.backend": backend}, root=tmp_path)
    assert summary["ledger"]["balanced"]
    lines = [line for line in read_lines(Path(summary["folder"]) / "metrics.jsonl") if line["phase"] == "step"]
    assert statistics.median(line["log_prob_gap"] for line in lines) < 0.1, "engine and learner read other tokens"
    assert all(line["importance_ess"] > 0.9 for line in lines)
    assert {"first_try_accuracy", "first_try_pass@3", "turns_mean"} <= summary["held_out"]["last_scores"].keys()

    view = StoreView.open(Path(summary["folder"]) / "store")
    batches = [record for _, record in view.decisions(kinds=[Kind.BATCH]) if isinstance(record, Batch)]
    episodes = view.episodes([row.episode_lsn for row in batches[-1].rows])
    turns = [len(episode.steps) for episode in episodes]
    assert max(turns) == 3
    for episode in episodes:
        for step in episode.steps[1:]:
            remark = bytes(step.observation.tolist()).decode()
            assert remark.rstrip("=").split()[1] in bytes(episode.steps[0].observation.tolist()).decode()


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(15 * MINUTES)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_three_turns_with_remarks_are_worth_ten_points(tmp_path: Path, seed: int) -> None:
    scores = run_to_end({"seed": seed}, root=tmp_path)["held_out"]["last_scores"]
    print({name: round(scores[name], 3) for name in ("sampled_accuracy", "first_try_accuracy", "first_try_pass@3")})
    assert scores["sampled_accuracy"] - scores["first_try_accuracy"] >= 0.10
