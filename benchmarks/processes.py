"""CPU seconds of a whole process tree, by what each process is: wall time under load says little, this says enough."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

import psutil

Seconds = dict[str, float]


class ProcessTree:
    """All processes below (and with) one. `read` them twice; `between` is what they used in between."""

    def __init__(self, pid: int) -> None:
        self._root = psutil.Process(pid)

    def read(self) -> Mapping[tuple[int, float], tuple[str, float]]:
        """(pid, start) of each live process to its name and the CPU seconds it has used so far, user and system."""
        seen: dict[tuple[int, float], tuple[str, float]] = {}
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in (self._root, *self._root.children(recursive=True)):
                with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
                    times = process.cpu_times()
                    seen[process.pid, process.create_time()] = (_role(process), times.user + times.system)
        return seen


def between(
    first: Mapping[tuple[int, float], tuple[str, float]], last: Mapping[tuple[int, float], tuple[str, float]]
) -> Seconds:
    """CPU seconds by role. What a process used that began and ended in between is not seen."""
    used: Seconds = {}
    for key, (role, seconds) in last.items():
        rise = seconds - first.get(key, (role, 0.0))[1]
        used[role] = used.get(role, 0.0) + rise
    return {role: seconds for role, seconds in sorted(used.items(), key=lambda item: -item[1]) if seconds > 0}


def _role(process: psutil.Process) -> str:
    """Ray names its workers `ray::Class.method`; ours are known by their module."""
    words = process.cmdline()
    if not words:
        return process.name()
    if words[0].startswith("ray::"):
        return words[0].removeprefix("ray::").partition(".")[0]
    for place, word in enumerate(words[:-1]):
        if word == "-m":
            return words[place + 1]
    known = [word.rpartition("/")[2] for word in words if "/" in word]
    script = next((name for name in known if name in ("raylet", "gcs_server") or name.endswith(".py")), known[0])
    return "ray" if "ray" in " ".join(words[:2]) or script in ("raylet", "gcs_server") else script
