"""Debian's real Prometheus scrapes processes of ours: the targets file is found, queries answer, the rules load."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from telemetry.catalogue import ALERTS, num_series

ROOT = Path(__file__).parents[2]
READY_S = 40.0
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


class Prometheus:
    """One server of this test's own."""

    def __init__(self, folder: Path, *, targets: Path) -> None:
        binary = shutil.which("prometheus")
        assert binary, "this test needs the Debian package prometheus: apt-get install prometheus"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        settings = {
            "global": {"scrape_interval": "500ms", "scrape_timeout": "400ms", "evaluation_interval": "500ms"},
            "rule_files": [str(ROOT / "deploy" / "prometheus" / "ratchet.rules.yml")],
            "scrape_configs": [
                {"job_name": "ratchet", "file_sd_configs": [{"files": [str(targets)], "refresh_interval": "1s"}]}
            ],
        }
        config = folder / "prometheus.yml"
        config.write_text(json.dumps(settings))  # JSON is YAML
        self._log = (folder / "prometheus.log").open("w")
        self._process = subprocess.Popen(
            [
                binary,
                f"--config.file={config}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{self._port}",
            ],
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )

    def get(self, path: str, **parameters: str) -> Any:
        query = urllib.parse.urlencode(parameters)
        with urllib.request.urlopen(f"http://127.0.0.1:{self._port}{path}?{query}", timeout=10) as answer:
            return json.load(answer)["data"]

    def query(self, expression: str) -> list[dict[str, Any]]:
        result: list[dict[str, Any]] = self.get("/api/v1/query", query=expression)["result"]
        return result

    def await_value(self, expression: str) -> float:
        """The first value that the expression has; fails with the server's log after READY_S."""
        deadline = time.monotonic() + READY_S
        while time.monotonic() < deadline:
            assert self._process.poll() is None, Path(self._log.name).read_text()
            try:
                if result := self.query(expression):
                    return float(result[0]["value"][1])
            except (urllib.error.URLError, ConnectionError):
                pass  # not listening yet
            time.sleep(0.1)
        raise AssertionError(f"{expression} has no value after {READY_S:g} s\n{Path(self._log.name).read_text()}")

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(timeout=20)
        self._log.close()


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
    from telemetry.exporter import write_targets

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
