"""One small run on Ray, from the command line alone: scraped while it runs, stopped, looked at, resumed, replayed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from telemetry.catalogue import num_series
from tests.end_to_end.commands import ROOT, TINY, options, ratchet
from tests.end_to_end.prometheus import Prometheus

SETTINGS = {**TINY, "steps": 100_000, "warm_start.steps": 5, "checkpoint.every_steps": 5}
MORE_STEPS = 6  # after the resume

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]


def status(run: Path) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads(ratchet("status", str(run), "--json").stdout)
    return summary


@pytest.fixture
def live_run(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """The driver, and the folder of its run."""
    words = [sys.executable, "-m", "console.main", "run", "configs/quickstart.yaml"]
    words += options({**SETTINGS, "root": tmp_path / "runs"})
    driver = subprocess.Popen(words, cwd=ROOT, stderr=subprocess.PIPE, text=True)
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
            'ratchet_idle_ratio{role="engine-0", window="minute"}',
            'ratchet_idle_ratio{role="update-0", window="run"}',
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

    running = status(run)
    assert running["state"] == "running"
    assert running["idle"].keys() == {"engine-0", "update-0"}
    assert all(0 <= share <= 1 for idle in running["idle"].values() for share in idle.values())
    stopped = ratchet("stop", str(run))
    assert stopped.returncode == 0, stopped.stderr
    assert "is stopped; go on with: ratchet resume" in stopped.stdout
    assert driver.wait(timeout=60) == 130

    between = status(run)
    assert between["state"] == "stopped"
    assert between["step"] > 0
    assert between["ledger"]["balanced"]

    resumed = ratchet("resume", str(run), "--set", f"steps={between['step'] + MORE_STEPS}", "--json")
    assert resumed.returncode == 0, resumed.stderr
    final = json.loads(resumed.stdout.splitlines()[-1])
    assert final["state"] == "finished"
    assert final["step"] == between["step"] + MORE_STEPS
    assert final["ledger"]["balanced"]
    assert final["held_out"]["items"] == SETTINGS["environment.held_out_items"]
    assert Path(final["report"]).is_file()

    check_trace(run, tmp_path / "trace.json", first=between["step"] + 1)

    evaluated = ratchet("evaluate", str(run), "--samples", "4", "--json")
    assert evaluated.returncode == 0, evaluated.stderr
    evaluation = json.loads(evaluated.stdout)
    assert (evaluation["items"], evaluation["samples"]) == (SETTINGS["environment.held_out_items"], 4)
    assert {"pass@1", "pass@2", "pass@4", "pass@4_high"} <= evaluation["scores"].keys()

    replayed = ratchet("replay", str(run), "--json")
    assert replayed.returncode == 0, replayed.stderr
    outcome = json.loads(replayed.stdout)
    assert outcome["equal"] == outcome["steps"] > 0


def check_trace(run: Path, file: Path, *, first: int) -> None:
    """Steps of a real run: every process has the spans of its work, and they are on one time line."""
    traced = ratchet("trace", str(run), "--step", str(first), "--steps", str(MORE_STEPS), "--out", str(file))
    assert traced.returncode == 0, traced.stderr
    events = json.loads(file.read_text())["traceEvents"]
    roles = {event["pid"]: event["args"]["name"] for event in events if event["name"] == "process_name"}
    seen: dict[str, dict[str, list[dict[str, Any]]]] = {role: {} for role in roles.values()}
    for event in events:
        if event["ph"] == "X":
            seen[roles[event["pid"]]].setdefault(event["name"], []).append(event)
    assert {"wait", "read", "update", "save", "decide", "publish", "push", "checkpoint"} <= seen["update-0"].keys()
    assert {"lease", "play", "generate", "reward", "append"} <= seen["rollout-0"].keys()
    assert {"generate", "paused", "probe"} <= seen["engine-0"].keys()
    assert {event["args"]["step"] for event in seen["update-0"]["update"]} == set(range(first, first + MORE_STEPS))
    for probe in seen["engine-0"]["probe"]:  # each inside one of the learner's, on clocks of two processes
        assert any(inside(probe, asked) for asked in seen["update-0"]["publish"])


def inside(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return bool(other["ts"] <= one["ts"] and one["ts"] + one["dur"] <= other["ts"] + other["dur"])
