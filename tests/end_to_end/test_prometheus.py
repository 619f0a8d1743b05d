"""A real Prometheus scrapes processes of ours: the targets file is found, queries answer, the rules load."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from telemetry.catalogue import ALERTS, num_series
from telemetry.exporter import write_targets
from tests.end_to_end.prometheus import ROOT, Prometheus

CHILD = """
import sys
from telemetry.exporter import Exporter
exporter = Exporter("update-0", "run-1")
exporter.set("ratchet_reward_mean", 0.625)
exporter.set("ratchet_staleness_mean_versions", 0.5)
exporter.set("ratchet_groups_ready", 12)
exporter.add("ratchet_completions_total", 10)
exporter.observe("ratchet_log_sync_seconds", 0.003, log="data")
print(exporter.start("127.0.0.1"), flush=True)
for _ in sys.stdin:
    exporter.add("ratchet_completions_total", 10)
"""


@pytest.fixture
def exporting() -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A process of ours with an endpoint; a line on its standard input counts ten completions more."""
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    yield child, int(child.stdout.readline())
    child.communicate(timeout=20)


@pytest.fixture
def prometheus(tmp_path: Path) -> Iterator[Prometheus]:
    server = Prometheus(tmp_path, targets=tmp_path / "metrics" / "targets.json")
    yield server
    server.close()


def test_queries_return_what_the_process_exports(
    tmp_path: Path, exporting: tuple[subprocess.Popen[str], int], prometheus: Prometheus
) -> None:
    child, port = exporting
    # Written after the server started: file_sd notices a new file by itself.
    write_targets(tmp_path / "metrics" / "targets.json", {"update-0": ("127.0.0.1", port)}, run="run-1")
    assert prometheus.await_value('ratchet_reward_mean{role="update-0", run="run-1"}') == 0.625
    assert prometheus.await_value("ratchet_staleness_mean_versions") == 0.5
    assert prometheus.await_value("ratchet_groups_ready") == 12
    assert prometheus.await_value("ratchet_process_resident_bytes") > 1 << 20
    assert prometheus.await_value('up{job="ratchet"}') == 1
    p99 = "histogram_quantile(0.99, ratchet_log_sync_seconds_bucket)"
    assert 0.002 < prometheus.await_value(p99) <= 0.005

    assert child.stdin is not None
    child.stdin.write("\n")
    child.stdin.flush()
    assert prometheus.await_value("rate(ratchet_completions_total[10s]) > 0") > 0
    assert prometheus.await_value('count({__name__=~"ratchet_.+"})') <= num_series()

    rules = prometheus.get("/api/v1/rules")["groups"][0]["rules"]
    assert [rule["name"] for rule in rules] == [alert.name for alert in ALERTS]
    assert all(rule["health"] in ("ok", "unknown") for rule in rules), rules
