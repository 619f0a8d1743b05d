"""A recorded run trained again with other settings: another result, beside the run; the run stays as it was."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from configs.formulas import FORMULAS
from configs.loader import load
from models.registry import load_version
from telemetry.logs import read_lines
from tests.end_to_end.commands import TINY, ratchet, run_to_end

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]


def contents(folder: Path) -> dict[str, tuple[int, str]]:
    """Modification time and hash of every file but the index's lock file, in which LMDB notes who reads."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "lock.mdb"]
    return {str(path): (path.stat().st_mtime_ns, hashlib.sha256(path.read_bytes()).hexdigest()) for path in files}


def test_other_losses_on_a_recorded_run(tmp_path: Path) -> None:
    run = Path(run_to_end({**TINY, "learner.learning_rate": 1e-3}, root=tmp_path)["folder"])
    before = contents(run)
    out = tmp_path / "rloo"
    answer = ratchet("replay", str(run), "--set", "learner.loss=rloo", "--seeds", "2", "--out", str(out), "--json")
    assert answer.returncode == 0, answer.stderr
    report = json.loads(answer.stdout)
    assert report["changed"].keys() >= {"learner.loss"}
    assert [branch["steps"] for branch in (report["recorded"], *report["branches"])] == [4, 4, 4]
    recorded = report["recorded"]
    for branch in report["branches"]:
        weights = load_version(out / f"seed-{branch['seed']}", 4)
        assert weights.root_hash == branch["root_hash"] != recorded["root_hash"]
        assert 0 <= branch["scores"]["sampled_accuracy"] <= 1
        assert branch["summary"]["mean"].keys() >= {"loss", "reward_mean", "importance_ess", "kl"}
    assert json.loads((out / "report.json").read_text()) == report
    assert len(list(read_lines(out / "steps.jsonl"))) == 8
    first, second = report["branches"]
    assert first["summary"]["mean"]["reward_mean"] == recorded["summary"]["mean"]["reward_mean"]
    assert first["root_hash"] != second["root_hash"]
    assert load(out / "config.yaml").learner.formula() == FORMULAS["rloo"]

    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "my_losses.py").write_text("def plain(log_probs, _, advantages, __):\n    return -advantages * log_probs\n")
    own = ratchet(
        "replay", str(run), "--set", "learner.loss=my_losses:plain", "--until", "2", "--out", "out", "--json", cwd=mine
    )
    assert own.returncode == 0, own.stderr
    (branch,) = json.loads(own.stdout)["branches"]
    assert branch["steps"] == 2
    assert branch["fingerprint"]["loss"].startswith("my_losses:plain ")

    said = ratchet("replay", str(run), "--compare")  # the same settings on the same rows: the run itself
    assert said.returncode == 0, said.stderr
    assert "with the same settings" in said.stdout
    (file,) = tmp_path.glob(f"{run.name}-replay-*/report.json")
    compared = json.loads(file.read_text())
    (again,) = compared["branches"]
    assert again["root_hash"] == recorded["root_hash"]
    assert again["scores"] == compared["recorded"]["scores"] == recorded["scores"]
    assert contents(run) == before
