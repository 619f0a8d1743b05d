"""A command with every process it starts: killed together, their CPU seconds added up, the lines they write followed.

Wall time on a machine with other work says little; CPU seconds of all processes say more.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import psutil

MARK = "RATCHET_BENCHMARK"  # in the environment of every process of one job, whoever its parent is by now
DEAD_S = 10.0

Used = Mapping[tuple[int, float], tuple[str, float]]


class Job:
    """Started when made; what it says goes to the end of `log`."""

    def __init__(self, command: Sequence[str], *, cwd: Path, environment: Mapping[str, str], log: Path) -> None:
        self._mark = secrets.token_hex(8)
        with log.open("a") as said:
            self._process = subprocess.Popen(
                list(command),
                cwd=cwd,
                env={**environment, MARK: self._mark},
                stdout=said,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.log = log

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None

    @property
    def code(self) -> int | None:
        return self._process.poll()

    def cpu_seconds(self) -> Used:
        """(pid, start) of each live process to its role and the CPU seconds that it has used, user and system."""
        used: dict[tuple[int, float], tuple[str, float]] = {}
        for process in self._alive():
            with contextlib.suppress(psutil.Error):
                times = process.cpu_times()
                used[process.pid, process.create_time()] = (role_of(process.cmdline()), times.user + times.system)
        return used

    def resident_bytes(self) -> int:
        """Of all live processes together. What several of them share is counted for each."""
        total = 0
        for process in self._alive():
            with contextlib.suppress(psutil.Error):
                total += process.memory_info().rss
        return total

    def kill(self) -> None:
        """SIGKILL to every process, the ones that are being started included."""
        deadline = time.monotonic() + DEAD_S
        while (alive := list(self._alive())) and time.monotonic() < deadline:
            for process in alive:
                with contextlib.suppress(psutil.Error):
                    process.kill()
            psutil.wait_procs(alive, timeout=1.0)
        self._process.wait()

    def _alive(self) -> Iterator[psutil.Process]:
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get(MARK) == self._mark and process.status() != psutil.STATUS_ZOMBIE:
                    yield process


def role_of(words: Sequence[str]) -> str:
    """What a command line is: Ray names its workers `ray::Class.method`, ours are modules."""
    if not words:
        return "?"
    if words[0].startswith("ray::"):
        return words[0].removeprefix("ray::").partition(".")[0]
    if "-m" in words[:-1]:
        return words[list(words).index("-m") + 1]
    if any("/ray/" in word for word in words[:8]):
        return "ray"
    return Path(next((word for word in words[:8] if word.endswith(".py")), words[0])).name


def seconds_between(first: Used, last: Used) -> dict[str, float]:
    """CPU seconds by role, most first. What a process used that began and ended in between is not seen."""
    used: dict[str, float] = {}
    for key, (role, seconds) in last.items():
        used[role] = used.get(role, 0.0) + seconds - first.get(key, (role, 0.0))[1]
    return dict(sorted(used.items(), key=lambda item: -item[1]))


class ThreadUse(NamedTuple):
    """Seconds since a thread began: on a processor, and waiting for one."""

    name: str  # as the kernel has it
    cpu_s: float
    queued_s: float


def thread_seconds(pid: int) -> dict[int, ThreadUse]:
    """What each thread of a process has used, by its native id."""
    used = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):  # it has just ended
            cpu_ns, queued_ns, _ = map(int, (task / "schedstat").read_text().split())
            used[int(task.name)] = ThreadUse((task / "comm").read_text().strip(), cpu_ns / 1e9, queued_ns / 1e9)
    return used


def anonymous_bytes(pid: int | str = "self") -> int:
    """Memory of a process that is its own: mapped files, which the kernel may drop, do not count."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Anonymous:"):
            return int(line.split()[1]) << 10
    raise OSError(f"/proc/{pid}/smaps_rollup names no anonymous memory")


class Tail:
    """A file of JSON lines that grows, or is not there yet."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offset = 0
        self._lines: list[dict[str, Any]] = []

    def lines(self) -> list[dict[str, Any]]:
        """All whole lines so far."""
        if self.path.exists():
            with self.path.open("rb") as file:
                file.seek(self._offset)
                new = file.read()
            whole = new[: new.rfind(b"\n") + 1]
            self._offset += len(whole)
            self._lines += [json.loads(line) for line in whole.splitlines()]
        return self._lines
