"""A few kill rounds of a store: `python -m tests.crash.store --rounds 1000` does as many as are asked for."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from buffers.owner import StoreOwner
from tests.crash.store import Oracle, find_faults, make_run_folder
from tests.unit.buffers.bench import name_task, small_config


def run_command(*words: str, folder: Path) -> dict[str, Any]:
    """What the command counted; it must have found nothing wrong."""
    command = [sys.executable, "-m", "tests.crash.store", *words, "--folder", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    counted: dict[str, Any] = json.loads(done.stdout)
    assert (counted["failed_rounds"], counted["faults"]) == (0, [])
    return counted


@pytest.mark.timeout(300)
def test_kill_rounds(tmp_path: Path) -> None:
    counted = run_command("--rounds", "8", folder=tmp_path)
    assert counted["rounds"] == 8
    assert min(counted[what] for what in ("tasks", "episodes", "decisions")) > 8
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_many_kill_rounds(tmp_path: Path) -> None:
    counted = run_command("--rounds", "200", "--seed", "5000", folder=tmp_path)
    everything = (
        "tasks", "episodes", "late", "feedback", "verdicts", "priorities", "decisions", "snapshots",
        "killed_while_opening",
    )  # fmt: skip
    assert min(counted[what] for what in everything) > 8


@pytest.mark.parametrize("harm", ["an episode is lost", "an epoch comes again", "the process found a fault"])
def test_the_oracle_notices(tmp_path: Path, harm: str) -> None:
    run_folder, oracle = make_run_folder(tmp_path, number=0), Oracle()
    StoreOwner.open(run_folder / "store", config=small_config(), source=name_task, create=True).close()
    oracle.hear("open 1")
    assert find_faults(run_folder, oracle) == []
    told = {
        "an episode is lost": "episode 4096 abc",
        "an epoch comes again": "open 1",
        "the process found a fault": "fault AssertionError()",
    }
    oracle.hear(told[harm])
    assert len(find_faults(run_folder, oracle)) == 1
