"""Ratchet from its command line, as benchmarks run it: `ratchet` to its end, `start_run` to be looked at meanwhile."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.processes import Job

ROOT = Path(__file__).resolve().parents[1]
QUICKSTART = ROOT / "configs" / "quickstart.yaml"
SAID = "said.log"  # what a system printed, in its folder
COMMAND_S = 7200.0


def environment_of(system: str) -> dict[str, str]:
    """What processes see: one thread unless they ask for more; TRL's do not see our packages."""
    variables = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "passive",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    if system != "ratchet":
        del variables["PYTHONPATH"]
    return variables


def set_words(settings: Sequence[str]) -> list[str]:
    return [word for setting in settings for word in ("--set", setting)]


def ratchet(*words: str) -> str:
    """What one `ratchet` command printed when it ended. Raises SystemExit with its words where it fails."""
    done = subprocess.run(
        [sys.executable, "-m", "console.main", *words],
        cwd=ROOT,
        env=environment_of("ratchet"),
        capture_output=True,
        text=True,
        timeout=COMMAND_S,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"ratchet {' '.join(words)} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def start_run(run_file: Path, *, settings: Sequence[str], root: Path) -> Job:
    """`ratchet run` with its run folder in `root`."""
    root.mkdir(parents=True, exist_ok=True)
    return _start("run", str(run_file), *set_words([*settings, f"root={root}"]), root=root)


def resume_run(root: Path) -> Job:
    """`ratchet resume` of the newest run in `root`."""
    return _start("resume", str((root / "latest").resolve()), root=root)


def finish(job: Job, *, timeout_s: float, look: Callable[[], None] = lambda: None, every_s: float = 0.2) -> Any:
    """Call `look` again and again until the run is over; the JSON of its last line.

    Raises SystemExit with all it said where it fails or takes longer.
    """
    deadline = time.monotonic() + timeout_s
    while not job.ended:
        look()
        if time.monotonic() > deadline:
            raise SystemExit(f"not over after {timeout_s:g} s:\n{job.log.read_text()}")
        time.sleep(every_s)
    if job.code:
        raise SystemExit(f"the run ended with code {job.code}:\n{job.log.read_text()}")
    return json.loads([line for line in job.log.read_text().splitlines() if line.startswith("{")][-1])


@contextmanager
def scratch_folder(keep: Path | None) -> Iterator[Path]:
    """`keep`, or a folder that is gone afterwards."""
    folder = keep or Path(tempfile.mkdtemp(prefix="ratchet-benchmark-"))
    try:
        yield folder.absolute()
    finally:
        if keep is None:
            shutil.rmtree(folder, ignore_errors=True)


def _start(*words: str, root: Path) -> Job:
    command = [sys.executable, "-m", "console.main", *words, "--json"]
    return Job(command, cwd=ROOT, environment=environment_of("ratchet"), log=root / SAID)
