"""`ratchet submit` to a real cluster with token authentication, started by `ray start --head` for these tests alone."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

ROOT = Path(__file__).parents[2]
ANSWER_S = 30  # in which a wrong token or a missing cluster is answered
TINY = {
    "mode": "sync",
    "max_staleness": 0,
    "steps": 2,
    "warm_start.steps": 2,
    "warm_start.batch_size": 4,
    "engine.backend": "transformers",
    "learner.groups_per_step": 2,
    "learner.group_size": 2,
    "rollout.chunk": 2,
    "environment.train_items": 64,
    "environment.held_out_items": 8,
    "evaluate.samples": 1,
    "model.init": "{layers: 1, width: 16, heads: 2, feed_forward: 32, max_positions: 64}",
    "store.segment_mib": 1,
    "store.reserve_mib": 0,
}

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """A one-node cluster of the tests' own."""

    address: str
    token: str
    home: Path

    def environment(self, **changes: str) -> dict[str, str]:
        """Ours, without what belongs to another cluster, with this one's token."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        return {**kept, "HOME": str(self.home), "PATH": path, "RAY_AUTH_TOKEN": self.token, **changes}

    def jobs(self) -> list[dict[str, Any]]:
        request = urllib.request.Request(f"{self.address}/api/jobs/")
        request.add_header("Authorization", f"Bearer {self.token}")
        with urllib.request.urlopen(request, timeout=20) as answer:
            jobs: list[dict[str, Any]] = json.load(answer)
        return jobs


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    # Not under pytest's folder: the path of a Unix socket has at most 107 characters.
    home = Path(tempfile.mkdtemp(prefix="rt-", dir="/tmp"))
    dashboard, head = free_port(), free_port()
    made = Cluster(address=f"http://127.0.0.1:{dashboard}", token=secrets.token_hex(32), home=home)
    log = (home / "head.log").open("w")
    ray = Path(sys.executable).parent / "ray"
    process = subprocess.Popen(
        [
            *(str(ray), "start", "--head", "--block", "--disable-usage-stats", "--include-log-monitor=false"),
            *("--node-ip-address=127.0.0.1", f"--port={head}", f"--temp-dir={home / 'ray'}"),
            *(f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={free_port()}"),
            *(f"--ray-client-server-port={free_port()}", "--num-cpus=4", f"--object-store-memory={100 << 20}"),
        ],
        cwd=home,
        env=made.environment(RAY_AUTH_MODE="token"),
        stdout=log,
        stderr=subprocess.STDOUT,
    )
    try:
        await_dashboard(made, process, Path(log.name))
        yield made
    finally:
        end_with_children(process)
        log.close()
        shutil.rmtree(home, ignore_errors=True)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def await_dashboard(cluster: Cluster, process: subprocess.Popen[bytes], log: Path) -> None:
    while True:
        assert process.poll() is None, log.read_text()
        try:
            cluster.jobs()
        except OSError:
            continue
        return


def end_with_children(process: subprocess.Popen[bytes]) -> None:
    family = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    process.terminate()
    _, alive = psutil.wait_procs(family, timeout=20)
    for survivor in alive:
        survivor.kill()
    psutil.wait_procs(alive, timeout=20)
    process.wait(timeout=20)


def command(cluster: Cluster, *words: str, settings: Mapping[str, object] = TINY) -> list[str]:
    options = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    quickstart = str(ROOT / "configs" / "quickstart.yaml")
    where = ["--set", f"root={cluster.home / 'runs'}", "--address", cluster.address]
    return [sys.executable, "-m", "console.main", "submit", quickstart, *where, *options, *words]


def answer(words: list[str], *, env: Mapping[str, str], timeout_s: float) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        words, cwd=ROOT, env=dict(env), capture_output=True, text=True, timeout=timeout_s, check=False
    )


def test_a_run_survives_its_client_and_starts_once(cluster: Cluster) -> None:
    words = command(cluster, "--id", "survivor")
    first = subprocess.Popen(words, cwd=ROOT, env=cluster.environment(), stdout=subprocess.PIPE, text=True)
    assert first.stdout is not None
    line = first.stdout.readline()  # the job runs and its log is followed
    first.send_signal(signal.SIGKILL)
    first.communicate()
    assert line

    again = answer(words, env=cluster.environment(), timeout_s=300)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "attached to survivor" in again.stderr
    assert line in again.stdout, "the log is followed from its first line"
    assert "report:" in again.stdout

    over = answer(words, env=cluster.environment(), timeout_s=100)
    assert over.returncode == 0
    assert [job["submission_id"] for job in cluster.jobs()].count("survivor") == 1
    (status,) = (cluster.home / "runs").glob("quickstart-*/status.json")
    assert json.loads(status.read_text())["state"] == "finished"


def test_the_run_code_comes_back(cluster: Cluster) -> None:
    result = answer(
        command(cluster, "--id", "refused", settings={"model.path": "/no/such/model"}),
        env=cluster.environment(),
        timeout_s=200,
    )
    assert result.returncode == 2, result.stdout + result.stderr
    assert "there is no folder /no/such/model" in result.stdout


def test_a_task_of_ones_own_travels_with_the_run(cluster: Cluster, tmp_path: Path) -> None:
    """Its folder is found on the cluster, the run keeps a copy, and other code is another job."""
    ratchet = [sys.executable, "-m", "console.main"]
    environment = {**cluster.environment(), "PYTHONPATH": str(ROOT)}
    made = subprocess.run([*ratchet, "init", "mine"], cwd=tmp_path, env=environment, check=False)
    assert made.returncode == 0
    options = [word for key, value in TINY.items() for word in ("--set", f"{key}={value}")]
    words = [*ratchet, "submit", str(tmp_path / "mine" / "run.yaml"), "--address", cluster.address]
    words += ["--set", f"root={cluster.home / 'own'}", *options]
    result = answer(words, env=environment, timeout_s=300)
    assert result.returncode == 0, result.stdout + result.stderr
    (run,) = (cluster.home / "own").glob("mine-*")
    assert (run / "task" / "task.py").read_text() == (tmp_path / "mine" / "task.py").read_text()
    assert json.loads((run / "status.json").read_text())["state"] == "finished"
    submitted = result.stderr.split("submitted ")[1].split()[0]

    again = answer(words, env=environment, timeout_s=100)
    assert f"attached to {submitted}" in again.stderr
    (tmp_path / "mine" / "task.py").write_text("raise RuntimeError('another task')\n")
    other = answer(words, env=environment, timeout_s=200)
    assert other.returncode == 2, other.stdout + other.stderr
    assert "submitted" in other.stderr
    assert "another task" in other.stdout
    (tmp_path / "mine" / "models.py").write_text("")
    clash = answer(words, env=environment, timeout_s=ANSWER_S)
    assert clash.returncode == 2
    assert "has the name of a package of Ratchet's" in clash.stderr


@pytest.mark.parametrize(
    ("token", "piece"), [("f" * 64, "it refuses our token"), ("", "it wants a token, and none was found")]
)
def test_a_wrong_token_is_answered_in_one_message(cluster: Cluster, token: str, piece: str) -> None:
    result = answer(command(cluster), env=cluster.environment(RAY_AUTH_TOKEN=token), timeout_s=ANSWER_S)
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    assert piece in result.stderr
    assert "ray get-auth-token" in result.stderr


def test_a_missing_cluster_is_answered_in_one_message(cluster: Cluster) -> None:
    words = command(cluster, "--address", f"http://127.0.0.1:{free_port()}")
    result = answer(words, env=cluster.environment(), timeout_s=ANSWER_S)
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    assert "nothing answers there" in result.stderr
