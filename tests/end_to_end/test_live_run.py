"""One small run on Ray, from the command line alone: scraped while it runs, stopped, looked at, resumed, replayed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from telemetry.catalogue import num_series
from tests.end_to_end.prometheus import ROOT, Prometheus

SETTINGS = {
    "steps": 100_000,
    "warm_start.steps": 5,
    "warm_start.batch_size": 16,
    "engine.backend": "transformers",
    "learner.groups_per_step": 4,
    "learner.group_size": 4,
    "rollout.chunk": 4,
    "environment.train_items": 500,
    "environment.held_out_items": 16,
    "evaluate.samples": 1,
    "model.init.layers": 1,
    "model.init.width": 48,
    "checkpoint.every_steps": 5,
    "store.segment_mib": 4,
    "store.reserve_mib": 0,
}

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]


def words(*parts: str) -> list[str]:
    return [sys.executable, "-m", "console.main", *parts]


def ratchet(*parts: str) -> subprocess.CompletedProcess[str]:
    answer = subprocess.run(words(*parts), cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert "Traceback" not in answer.stderr, answer.stderr
    return answer


def status(run: Path) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads(ratchet("status", str(run), "--json").stdout)
    return summary


@pytest.fixture
def live_run(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """The driver, and the folder of its run."""
    options = [word for key, value in SETTINGS.items() for word in ("--set", f"{key}={value}")]
    start = words("run", "configs/quickstart.yaml", *options, "--set", f"root={tmp_path / 'runs'}")
    driver = subprocess.Popen(start, cwd=ROOT, stderr=subprocess.PIPE, text=True, env=dict(os.environ))
    assert driver.stderr is not None
    line = driver.stderr.readline()
    assert line.startswith("run folder: "), line + driver.stderr.read()
    yield driver, Path(line.removeprefix("run folder: ").strip())
    if driver.poll() is None:
        driver.terminate()
    driver.communicate(timeout=120)


def test_a_run_is_scraped_stopped_resumed_and_replayed(
    live_run: tuple[subprocess.Popen[str], Path], tmp_path: Path
) -> None:
    driver, run = live_run
    prometheus = Prometheus(tmp_path, targets=run / "metrics" / "targets.json")
    try:
        for expression in (
            "ratchet_reward_mean",
            "ratchet_staleness_mean_versions",
            "ratchet_log_prob_gap_nats",
            "ratchet_groups_ready",  # lag
            "rate(ratchet_completions_total[30s]) > 0",
            'histogram_quantile(0.99, sum by (le) (ratchet_log_sync_seconds_bucket{log="data"}))',
        ):
            prometheus.await_value(expression, within_s=240)
        processes = prometheus.query('up{job="ratchet"} == 1')
        assert {one["metric"]["role"] for one in processes} == {"driver", "store", "engine-0", "rollout-0", "update-0"}
        assert {one["metric"]["run"] for one in processes} == {run.name}
        most = max(float(one["value"][1]) for one in prometheus.query('count by (role) ({__name__=~"ratchet_.+"})'))
        assert most <= num_series()
        assert prometheus.query("ratchet_tasks_handed"), "the ledger is exported"
    finally:
        prometheus.close()

    assert status(run)["state"] == "running"
    stopped = ratchet("stop", str(run))
    assert stopped.returncode == 0, stopped.stderr
    assert "is stopped; go on with: ratchet resume" in stopped.stdout
    assert driver.wait(timeout=60) == 130

    between = status(run)
    assert between["state"] == "stopped"
    assert between["step"] > 0
    assert between["ledger"]["balanced"]

    resumed = ratchet("resume", str(run), "--set", f"steps={between['step'] + 2}", "--json")
    assert resumed.returncode == 0, resumed.stderr
    final = json.loads(resumed.stdout.splitlines()[-1])
    assert final["state"] == "finished"
    assert final["step"] == between["step"] + 2
    assert final["ledger"]["balanced"]
    assert final["held_out"]["items"] == SETTINGS["environment.held_out_items"]
    assert Path(final["report"]).is_file()

    replayed = ratchet("replay", str(run), "--json")
    assert replayed.returncode == 0, replayed.stderr
    outcome = json.loads(replayed.stdout)
    assert outcome["equal"] == outcome["steps"] > 0
