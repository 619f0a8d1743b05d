"""A bisection killed at random moments ends with the same answer, and the run it looks at stays as it was."""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks import sites
from tests.unit.house.guard import ROOT

STEPS, ROUNDS = 40, 20
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def start(run: Path, out: Path) -> subprocess.Popen[str]:
    words = ["bisect", str(run), "--metric", sites.METRIC, "--good", "0", "--bad", str(STEPS), "--out", str(out)]
    return subprocess.Popen(
        [sys.executable, "-m", "console.main", *words, "--json"],
        cwd=run.parent,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> dict[str, Any]:
    said, _ = process.communicate()
    assert process.returncode == 0
    report: dict[str, Any] = json.loads(said)
    return {key: value for key, value in report.items() if key not in ("out", "refolds", "steps")}


def contents(folder: Path) -> dict[str, str]:
    """Of every file but those in which readers say that they read: a killed one leaves its own, which pins nothing."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "lock.mdb"]
    files = [path for path in files if path.parent.name != "readers"]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_kill_rounds(tmp_path: Path) -> None:
    config = sites.configure(steps=STEPS, seed=0, root=tmp_path / "runs", held_out=200, checkpoint_every=20)
    run = sites.play(config, name="sites")
    before = contents(run)
    began = time.monotonic()
    whole = finish(start(run, tmp_path / "whole"))
    took_s = time.monotonic() - began
    chance = random.Random(7)
    for number in range(ROUNDS):
        out = tmp_path / f"out-{number}"
        for _ in range(chance.randint(1, 3)):
            process = start(run, out)
            try:
                process.wait(timeout=chance.uniform(0.2, 1.0) * took_s)
            except subprocess.TimeoutExpired:
                process.kill()
            process.communicate()
        assert finish(start(run, out)) == whole, number
    assert contents(run) == before
