"""A sweep of real runs: one whose driver is killed is resumed, Ctrl-C stops it, the same command goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from telemetry.logs import read_lines
from tests.end_to_end.commands import ROOT, TINY, options

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]
STEPS = 60


class Sweep:
    """One `ratchet sweep` as a process of this test's own."""

    def __init__(self, out: Path) -> None:
        settings = {**TINY, "steps": STEPS, "warm_start.steps": 5, "checkpoint.every_steps": 10}
        words = [sys.executable, "-m", "console.main", "sweep", "configs/quickstart.yaml", "--seeds", "2"]
        words += ["--out", str(out), "--json", *options(settings)]
        self.process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def await_step(self, run: Path) -> None:
        """Until `run` has made a step."""
        while not any(line["phase"] == "step" for line in read_lines(run / "metrics.jsonl")):
            assert self.process.poll() is None, self.process.communicate()
            time.sleep(0.05)

    def end(self) -> tuple[str, str]:
        said = self.process.communicate(timeout=600)
        assert "Traceback" not in said[1], said[1]
        return said


def status(run: Path) -> dict[str, Any]:
    written: dict[str, Any] = json.loads((run / "status.json").read_text())
    return written


@pytest.mark.slow
def test_a_sweep_is_killed_stopped_and_goes_on(tmp_path: Path) -> None:
    first, second = tmp_path / "seed-0", tmp_path / "seed-1"
    sweep = Sweep(tmp_path)
    try:
        sweep.await_step(first)
        os.kill(status(first)["pid"], signal.SIGKILL)
        sweep.await_step(second)
        assert status(first)["state"] == "finished", "a run whose driver died is resumed before the next one begins"
        sweep.process.send_signal(signal.SIGINT)
        _, said = sweep.end()
    finally:
        sweep.process.kill()
    assert sweep.process.returncode == 130, said
    assert "attempt 2 of 3" in said
    assert "the same command goes on" in said
    assert status(second)["state"] == "stopped"
    partial = json.loads((tmp_path / "report.json").read_text())
    assert [run["state"] for run in partial["variants"][0]["runs"]] == ["finished", "not started"]
    before = status(first)

    again = Sweep(tmp_path)
    try:
        answer, said = again.end()
    finally:
        again.process.kill()
    assert again.process.returncode == 0, said
    assert "seed-0 is finished" in said
    assert status(first) == before, "a finished run is not run again"
    assert status(second)["step"] == STEPS
    (variant,) = json.loads(answer)["variants"]
    assert variant["num_seeds"] == 2
    assert variant["metric"] == "sampled_accuracy"
    assert variant["items"] == TINY["environment.held_out_items"]
    assert (tmp_path / "report.md").is_file()
