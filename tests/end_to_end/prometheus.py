"""Debian's real Prometheus as a test's own server."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
READY_S = 40.0


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

    def await_value(self, expression: str, *, within_s: float = READY_S) -> float:
        """The first value that the expression has; fails with the server's log after `within_s`."""
        deadline = time.monotonic() + within_s
        while time.monotonic() < deadline:
            assert self._process.poll() is None, Path(self._log.name).read_text()
            try:
                if result := self.query(expression):
                    return float(result[0]["value"][1])
            except (urllib.error.URLError, ConnectionError):
                pass  # not listening yet
            time.sleep(0.1)
        raise AssertionError(
            f"{expression} has no value after {within_s:g} s\n{Path(self._log.name).read_text()[-1000:]}"
        )

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(timeout=20)
        self._log.close()
