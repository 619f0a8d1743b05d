"""Runs on a Ray cluster: submitted once under an explicit id, followed, and attached to again after the client died.

The submitter is only a reader: the driver runs on the cluster, the code travels as Ray's `working_dir`, and whoever
submits the same id again attaches to the first job, finished or not.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import shutil
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.loader import dump
from configs.objects import TASK_FOLDER
from configs.schema import RunConfig
from contracts.errors import ClusterError

DEADLINE_S = 10.0
JOB_FILE = Path(TASK_FOLDER) / "job.yaml"  # beside the user's own files, as the configuration was beside them
ROOT = Path(__file__).resolve().parent.parent
# What a run needs of the project, and nothing else: no environment, no runs, no history.
EXCLUDED = shutil.ignore_patterns(
    ".*", "__pycache__", "*.pyc", "runs", "tests", "benchmarks", "docs", "build", "*.egg-info", "models_local"
)


@dataclass(frozen=True, kw_only=True)
class Job:
    """A submitted run. `attached`: it was there before."""

    submission_id: str
    address: str
    attached: bool


def derive_id(config: RunConfig, *, code: str) -> str:
    """The id of a configuration: its name and the hash of every key and of the user's files (`code`)."""
    digest = hashlib.sha256(f"{dump(config)}{code}".encode()).hexdigest()
    return f"ratchet-{re.sub(r'[^A-Za-z0-9_-]', '-', config.name)}-{digest[:12]}"


def submit(
    config: RunConfig,
    *,
    address: str,
    submission_id: str,
    python: str,
    ship: Callable[[Path], None] = lambda folder: None,
) -> Job:
    """Start the run under `submission_id`, or attach to the job that has that id. Raises ClusterError within 30 s.

    `ship` puts the user's own files into the folder that it is given, which travels with the code.
    """
    address = _normalise(address)
    check_cluster(address)
    client = _connect(address)
    if _exists(client, submission_id):
        return Job(submission_id=submission_id, address=address, attached=True)
    with tempfile.TemporaryDirectory(prefix="ratchet-submit-") as scratch:
        folder = Path(scratch) / "code"
        shutil.copytree(ROOT, folder, ignore=EXCLUDED)
        ship(folder / TASK_FOLDER)
        (folder / JOB_FILE).parent.mkdir(exist_ok=True)
        (folder / JOB_FILE).write_text(dump(config))
        try:
            client.submit_job(
                entrypoint=f"{python} -m console.main run {JOB_FILE}",
                submission_id=submission_id,
                runtime_env={"working_dir": str(folder)},
                metadata={"ratchet_run": config.name},
            )
        except RuntimeError as error:
            if _exists(client, submission_id):  # another submitter was faster
                return Job(submission_id=submission_id, address=address, attached=True)
            raise ClusterError(
                f"submit {submission_id} to {address}",
                f"the cluster refused it: {str(error).splitlines()[0]}",
                "see the cluster's dashboard log",
            ) from None
    return Job(submission_id=submission_id, address=address, attached=False)


def follow(job: Job, *, write: Callable[[str], None]) -> int:
    """Hand the job's log to `write` from its first line until it ends; the run's exit code.

    Raises ClusterError where the cluster stops answering.
    """
    client = _connect(job.address)
    asyncio.run(_tail(client, job, write))
    info = client.get_job_info(job.submission_id)
    if info.driver_exit_code is not None:
        return int(info.driver_exit_code)
    return 0 if info.status.value == "SUCCEEDED" else 1


def check_cluster(address: str) -> None:
    """Raises ClusterError, in one deadline, where nothing answers, it is no Ray dashboard, or refuses our token."""
    token = find_token()
    request = urllib.request.Request(f"{address}/api/version")
    if token:
        request.add_header("Authorization", f"Bearer {token}")
    asked = f"submit to the Ray cluster at {address}"
    try:
        with urllib.request.urlopen(request, timeout=DEADLINE_S) as answer:
            version = json.load(answer)["ray_version"]
    except urllib.error.HTTPError as error:
        raise ClusterError(asked, _refusal(error.code, token), _TOKEN_TODO) from None
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        raise ClusterError(
            asked, f"nothing answers there: {reason}", "give the dashboard's address, as in http://head-node:8265"
        ) from None
    except (ValueError, KeyError, TypeError):
        raise ClusterError(
            asked, "what answers there is no Ray dashboard", "give its address, as in http://head-node:8265"
        ) from None
    assert isinstance(version, str)


def find_token() -> str:
    """The token as Ray finds it: RAY_AUTH_TOKEN, then the file RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token; "" if none."""
    token = os.environ.get("RAY_AUTH_TOKEN", "").strip()
    file = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    return token or (file.read_text().strip() if file.is_file() else "")


_TOKEN_TODO = "set RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH to the cluster's token (on its head: ray get-auth-token)"


def _refusal(code: int, token: str) -> str:
    if code == 401:
        return "it wants a token, and none was found" if not token else "it did not take our token"
    if code == 403:
        return "it refuses our token: it is another cluster's, or out of date"
    return f"it answers with HTTP status {code}"


def _normalise(address: str) -> str:
    if re.match(r"^[a-z]+://", address) is None:
        address = f"http://{address}"
    if not address.startswith(("http://", "https://")):
        raise ClusterError(
            f"submit to {address}",
            "jobs are submitted over HTTP",
            "give the dashboard's address: http://head-node:8265",
        )
    return address.rstrip("/")


def _connect(address: str) -> Any:
    """A client that sends our token where there is one."""
    if not find_token():
        os.environ["RAY_AUTH_MODE"] = "disabled"  # check_cluster saw that this cluster asks for none
    from ray.job_submission import JobSubmissionClient

    os.environ.pop("RAY_ADDRESS", None)  # Ray would prefer it to the address that was asked for
    return JobSubmissionClient(address)


def _exists(client: Any, submission_id: str) -> bool:
    return any(job.submission_id == submission_id for job in client.list_jobs())


async def _tail(client: Any, job: Job, write: Callable[[str], None]) -> None:
    """Until the job has ended. A dropped connection is taken up again where it was."""
    written = 0
    while True:
        seen = 0
        chunks = client.tail_job_logs(job.submission_id)
        try:
            while (chunk := await _next(chunks, job)) is not None:
                fresh = chunk[max(0, written - seen) :]
                seen += len(chunk)
                if fresh:
                    write(fresh)
                    written += len(fresh)
        finally:
            await chunks.aclose()
        status = await asyncio.to_thread(client.get_job_status, job.submission_id)
        if status.is_terminal():
            return
        await asyncio.sleep(0.5)  # pending, or the connection was dropped


async def _next(chunks: Any, job: Job) -> str | None:
    """The next piece of the log; None at its end or where the connection dropped. In silence, looks for the cluster."""
    task = asyncio.ensure_future(anext(chunks, None))
    try:
        while not (await asyncio.wait({task}, timeout=DEADLINE_S))[0]:
            await asyncio.to_thread(check_cluster, job.address)
        return task.result()
    except RuntimeError:
        await asyncio.to_thread(check_cluster, job.address)
        return None
    finally:
        if not task.done():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
