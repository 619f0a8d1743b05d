"""`ratchet blame` and `ratchet bisect` on a text run, by its log alone: no torch model, no engine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.unit.console.played import STEPS
from tests.unit.console.test_bad_input import assert_refused, ratchet


def test_the_tables(finished_run: Path) -> None:
    said = ratchet("blame", str(finished_run), cwd=finished_run.parent)
    assert said.returncode == 0, said.stderr
    assert said.stdout.startswith(f"version {STEPS}: {4 * STEPS} episodes in steps 1 to {STEPS}\n")
    assert "rollout-0.0     100.0%" in said.stdout
    beside = ratchet("blame", str(finished_run), "--last", "2", "--by", "producer", cwd=finished_run.parent)
    lines = beside.stdout.splitlines()
    assert lines[0].endswith(f"steps {STEPS - 1} to {STEPS}, beside the 2 before")
    assert lines[2].split() == ["producer", "share", "before", "reward", "before", "shift", "suspicion", "episodes"]
    assert lines[3].split()[0] == "rollout-0.0"
    assert len(lines[3].split()) == len(lines[2].split())
    assert len(lines) == 4


def test_shares_of_each_kind_add_up(finished_run: Path) -> None:
    said = json.loads(ratchet("blame", str(finished_run), "--json", cwd=finished_run.parent).stdout)
    for sources in said["sources"].values():
        assert sum(one["share"] for one in sources) == pytest.approx(1.0)
    assert {one["name"] for one in said["sources"]["reward"]} == {"0", "1"}
    assert [one["name"] for one in said["sources"]["verifier"]] == ["guess-1"]


def test_a_training_metric_of_a_text_run(finished_run: Path, tmp_path: Path) -> None:
    words = ["bisect", str(finished_run), "--metric", "reward_mean", "--good", "0", "--bad", "4"]
    said = ratchet(*words, "--out", str(tmp_path), cwd=finished_run.parent)
    assert said.returncode == 0, said.stderr
    assert "by the metric of 4 steps in the log: nothing was folded again" in said.stdout
    assert "producers in that batch" in said.stdout
    assert (tmp_path / "report.json").is_file()
    few = ratchet(*words[:-1], "2", "--out", str(tmp_path), cwd=finished_run.parent)
    assert_refused(few, "where a training metric changed", "at least 4 steps apart")
