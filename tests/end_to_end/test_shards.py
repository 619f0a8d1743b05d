"""One small run whose experience lies in three shards: one shard killed, then all, resumed, looked at, replayed."""

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

from buffers.addresses import shard_of
from buffers.view import StoreView
from contracts.records import Batch, Kind
from tests.end_to_end.commands import ROOT, TINY, options, ratchet

SETTINGS = {**TINY, "steps": 100_000, "warm_start.steps": 5, "store.shards": 3, "store.index_map_mib": 64}
MORE_STEPS = 6  # after each interruption
WAIT_S = 240.0
REFUSED = (
    ("snapshot", "create", "--name", "one"),
    ("export", "--out", "elsewhere"),
    ("store", "inspect"),
    ("store", "ask", "staleness"),
    ("store", "query"),
    ("store", "repair"),
    ("store", "erase", "--lsn", "1", "--reason", "no"),
    ("store", "archive", "--to", "file:///elsewhere"),
    ("rewind", "--exclude", "task:one"),
)

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]


def status(run: Path) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads(ratchet("status", str(run), "--json").stdout)
    return summary


def read_step(run: Path) -> int:
    """As the driver wrote it last."""
    file = run / "status.json"
    return int(json.loads(file.read_text()).get("step", 0)) if file.exists() else 0


def await_step(run: Path, step: int, driver: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + WAIT_S
    while read_step(run) < step:
        assert driver.poll() is None, "the driver ended"
        assert time.monotonic() < deadline, f"step {step} was not reached"
        time.sleep(0.2)


@pytest.fixture
def killed_run(tmp_path: Path) -> Path:
    """The folder of a run whose shard 1 was killed and came back, and whose driver was killed then."""
    words = [sys.executable, "-m", "console.main", "run", "configs/quickstart.yaml"]
    words += options({**SETTINGS, "root": tmp_path / "runs"})
    driver = subprocess.Popen(words, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    try:
        assert driver.stderr is not None
        line = driver.stderr.readline()
        assert line.startswith("run folder: "), line + driver.stderr.read()
        run = Path(line.removeprefix("run folder: ").strip())
        await_step(run, 2, driver)
        os.kill(json.loads((run / "store-1" / "lock").read_text())["pid"], signal.SIGKILL)
        await_step(run, read_step(run) + MORE_STEPS, driver)
    finally:
        driver.kill()
        driver.communicate(timeout=120)
    return run


def test_a_run_of_three_shards(killed_run: Path) -> None:
    run = str(killed_run)
    crashed = status(killed_run)
    assert (crashed["state"], crashed["shards"]["here"]) == ("crashed", [0, 1, 2])
    assert crashed["ledger"]["balanced"]

    resumed = ratchet("resume", run, "--set", f"steps={crashed['step'] + MORE_STEPS}", "--json")
    assert resumed.returncode == 0, resumed.stderr
    final = json.loads(resumed.stdout.splitlines()[-1])
    assert (final["state"], final["step"]) == ("finished", crashed["step"] + MORE_STEPS)
    assert final["ledger"]["balanced"]
    assert final["ledger"]["ended"]["trained"] > 0
    assert Path(final["report"]).is_file()

    view = StoreView.open(killed_run / "store")
    batches = [one for _, one in view.decisions(kinds=[Kind.BATCH]) if isinstance(one, Batch)]
    assert {shard_of(row.lease) for batch in batches for row in batch.rows} == {0, 1, 2}
    assert final["ledger"]["episodes_trained"] == sum(len(batch.rows) for batch in batches)

    replayed = ratchet("replay", run, "--json")
    assert replayed.returncode == 0, replayed.stderr
    outcome = json.loads(replayed.stdout)
    assert outcome["equal"] == outcome["steps"] > 0

    verified = ratchet("store", "verify", run, "--json")
    assert verified.returncode == 0, verified.stdout
    assert json.loads(verified.stdout)["num_shards"] == 3
    check_refusals(killed_run)


def check_refusals(run: Path) -> None:
    """What is not built over shards says so."""
    for group, *words in REFUSED:
        name, *rest = words if group in ("store", "snapshot") else ("", *words)
        answer = ratchet(*[word for word in (group, name) if word], str(run), *rest)
        assert answer.returncode == 2, (group, name, answer.stdout, answer.stderr)
        assert "3 shards (store.shards)" in answer.stderr
    fewer = ratchet("resume", str(run), "--set", "store.shards=2")
    assert (fewer.returncode, "store.shards from 3 to 2" in fewer.stderr) == (2, True)
