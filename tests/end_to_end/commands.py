"""Small runs from the command line, as a user starts them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
TINY: Mapping[str, object] = {
    "steps": 4,
    "warm_start.steps": 60,  # with the next three: about half of a completion is right, so that groups have a spread
    "warm_start.batch_size": 64,
    "warm_start.learning_rate": 1e-2,
    "environment.parameters": "{min_word_len: 3, max_word_len: 3}",
    "engine.backend": "transformers",
    "learner.groups_per_step": 4,
    "learner.group_size": 4,
    "rollout.chunk": 4,
    "environment.train_items": 500,
    "environment.held_out_items": 16,
    "evaluate.samples": 1,
    "model.init.layers": 1,
    "model.init.width": 48,
    "checkpoint.every_steps": 2,
    "store.segment_mib": 4,
    "store.reserve_mib": 0,
}

SYNC: Mapping[str, object] = {**TINY, "mode": "sync", "max_staleness": 0}
LEARNS: Mapping[str, object] = {**SYNC, "learner.learning_rate": 1e-3}  # each step's weights are others

TINY_CONTROL: Mapping[str, object] = {
    "steps": 2,
    "control.lanes": 2,
    "control.horizon": 16,
    "control.evaluation_episodes": 2,
    "learner.groups_per_step": 4,
    "store.segment_mib": 4,
    "store.reserve_mib": 0,
}


def options(settings: Mapping[str, object]) -> list[str]:
    return [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]


def ratchet(*parts: str, cwd: Path = ROOT, timeout_s: float = 400) -> subprocess.CompletedProcess[str]:
    """What the command said. A traceback is a fault whatever the exit code."""
    words = [sys.executable, "-m", "console.main", *parts]
    answer = subprocess.run(words, cwd=cwd, capture_output=True, text=True, timeout=timeout_s, check=False)
    assert "Traceback" not in answer.stderr, answer.stderr
    return answer


def run_to_end(settings: Mapping[str, object], *, root: Path) -> dict[str, Any]:
    """The final status of a run of configs/quickstart.yaml with `settings`."""
    answer = ratchet("run", "configs/quickstart.yaml", *options({**settings, "root": root}), "--json")
    assert answer.returncode == 0, answer.stderr
    summary: dict[str, Any] = json.loads(answer.stdout.splitlines()[-1])
    return summary
