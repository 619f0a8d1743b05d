"""Which process a number means: a process id together with the moment that process started."""

from __future__ import annotations

from pathlib import Path


def start_ticks(pid: int) -> int | None:
    """Clock ticks from boot to the start of process `pid` (field 22 of /proc/PID/stat); None if it is gone or a zombie.

    A process id is used again, the pair (id, ticks) is not.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = stat.rpartition(")")[2].split()  # the name, in parentheses, may hold spaces
    return None if fields[0] in "ZX" else int(fields[19])


def is_alive(pid: int, *, started: int) -> bool:
    """Whether the process that had `pid` and started at `started` ticks still runs."""
    return start_ticks(pid) == started
