"""What `ratchet replay RUN --set learner.loss=rloo --seeds 2` leaves in its folder, checked."""

from __future__ import annotations

import json
from pathlib import Path

from configs.formulas import FORMULAS
from configs.loader import load
from models.registry import load_version
from telemetry.logs import read_lines
from tests.end_to_end.commands import TINY


def check_other_losses(out: Path) -> None:
    """Two branches of TINY's steps, each with weights, scores and sums of its own."""
    steps = int(str(TINY["steps"]))
    report = json.loads((out / "report.json").read_text())
    assert report["changed"].keys() >= {"learner.loss"}
    recorded = report["recorded"]
    assert [branch["steps"] for branch in (recorded, *report["branches"])] == [steps] * 3
    for branch in report["branches"]:
        weights = load_version(out / f"seed-{branch['seed']}", steps)
        assert weights.root_hash == branch["root_hash"] != recorded["root_hash"]
        assert 0 <= branch["scores"]["sampled_accuracy"] <= 1
        assert branch["summary"]["mean"].keys() >= {"loss", "reward_mean", "importance_ess", "kl"}
    assert len(list(read_lines(out / "steps.jsonl"))) == 2 * steps
    first, second = report["branches"]
    assert first["summary"]["mean"]["reward_mean"] == recorded["summary"]["mean"]["reward_mean"]
    assert first["root_hash"] != second["root_hash"]
    assert load(out / "config.yaml").learner.formula() == FORMULAS["rloo"]
