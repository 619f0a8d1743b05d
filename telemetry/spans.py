"""What a process was doing when: spans in spans/ROLE.jsonl, for people. No part of a run reads them.

    configure("update-0", folder=run / "spans", working=...)     # once a process; without it, spans cost nothing
    with span("update", step=12):
        ...

A file holds sessions. Each begins with a head that says whose clock its times are of; then one line a span, written
when it ends:

    {"role": "update-0", "pid": 71, "host": "a", "boot": "5f0c", "clock_ns": 12345678, "wall_ns": 1795263031200000000}
    {"name": "update", "track": "main", "start_ns": 13456789, "duration_ns": 81004500, "step": 12}

Times are of the monotonic clock, which all processes of one boot of a machine share: their spans line up whatever
happens to the wall clock. Machines are put together by the wall clocks of their heads, and so line up as well as those.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from telemetry.logs import JsonLines, read_lines

FILE_BYTES = 16 << 20  # of one file before it rolls over; one older file is kept
SHORTEST_NS = 200_000  # of a span that is written; shorter ones would not be seen in a trace
MINUTE_S = 60
MAIN_TRACK = "main"
Working = Callable[[Counter[str]], bool]
Facts = Mapping[str, int | str]
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Span:
    """One thing that one thread did."""

    name: str
    track: str  # one line of work: a thread, or what the code names so
    start_ns: int  # since 1970, by the wall clock that its machine had at the first head of that boot
    duration_ns: int
    facts: Facts = field(default_factory=dict)

    @property
    def end_ns(self) -> int:
        return self.start_ns + self.duration_ns


@dataclass(frozen=True, kw_only=True)
class Session:
    """The spans of one process from its start to its end, in the order in which they ended."""

    role: str
    pid: int
    host: str
    spans: tuple[Span, ...]


@dataclass(frozen=True, kw_only=True)
class Open:
    """A span that has begun."""

    name: str
    track: str
    start_ns: int
    facts: Facts


class SpanLog:
    """One process's spans, and how much of its time it was at work. Thread-safe. A full disk stops it, nothing else."""

    def __init__(
        self, path: Path, *, role: str, working: Working | None = None, clock: Callable[[], int] = time.monotonic_ns
    ) -> None:
        self._path, self._role, self._clock = path, role, clock
        self._working = working
        self._open: Counter[str] = Counter()
        self._work: WorkClock | None = None
        self._lock = threading.Lock()
        self._lines: JsonLines | None = self._begin_file()

    def begin(self, name: str, *, track: str, facts: Facts) -> Open:
        now = self._clock()
        if self._working is not None:
            with self._lock:
                self._open[name] += 1
                self._note(now)
        return Open(name=name, track=track, start_ns=now, facts=facts)

    def end(self, one: Open) -> None:
        now = self._clock()
        duration = now - one.start_ns
        with self._lock:
            if self._working is not None:
                self._open[one.name] -= 1
                self._note(now)
            if duration >= SHORTEST_NS:
                times = {"start_ns": one.start_ns, "duration_ns": duration}
                self._write({"name": one.name, "track": one.track, **times, **one.facts})

    def idle(self) -> dict[str, float] | None:
        """Share of its time that the process was not at work, over the last `minute` and the `run` from its first span
        on; None before that, or where nobody said what work is."""
        with self._lock:
            return None if self._work is None else self._work.idle(self._clock() / 1e9)

    def close(self) -> None:
        with self._lock:
            if self._lines is not None:
                self._lines.close()
                self._lines = None

    def _note(self, now_ns: int) -> None:
        assert self._working is not None
        if self._work is None:
            self._work = WorkClock(now_ns / 1e9)
        self._work.turn(self._working(self._open), now_ns / 1e9)

    def _begin_file(self) -> JsonLines:
        lines = JsonLines(self._path)
        head = {"role": self._role, "pid": os.getpid(), "host": socket.gethostname(), "boot": _boot_id()}
        lines.append({**head, "clock_ns": self._clock(), "wall_ns": time.time_ns()})
        return lines

    def _write(self, line: Mapping[str, Any]) -> None:
        if self._lines is None:
            return
        try:
            self._lines.append(line)
            if self._lines.size >= FILE_BYTES:
                self._lines.close()
                self._path.replace(_older(self._path))
                self._lines = self._begin_file()
        except OSError as error:  # a border: what only people read must not end a run
            self._lines = None
            log.warning("no more spans are written", extra={"detail": str(error)})


class WorkClock:
    """How long something was at work: in all, and in each of the last 60 seconds. Times are seconds of one clock."""

    def __init__(self, now: float) -> None:
        self._begun = self._seen = now
        self._at_work = False
        self._total_s = 0.0
        self._seconds = [0.0] * (MINUTE_S + 1)  # work within second n of the clock, at n modulo their number

    def turn(self, at_work: bool, now: float) -> None:
        """From `now` on it is at work, or not."""
        self._advance(now)
        self._at_work = at_work

    def idle(self, now: float) -> dict[str, float]:
        self._advance(now)
        first = max(self._begun, int(now) - MINUTE_S)
        worked_s = sum(self._seconds)
        return {"minute": _share(worked_s, now - first), "run": _share(self._total_s, now - self._begun)}

    def _advance(self, now: float) -> None:
        """Time passes second by second, so that each slot is emptied before it is used again."""
        size = len(self._seconds)
        while self._seen < now:
            second = int(self._seen)
            until = min(now, second + 1.0)
            if self._at_work:
                self._seconds[second % size] += until - self._seen
                self._total_s += until - self._seen
            if until == second + 1.0:
                self._seconds[(second + 1) % size] = 0.0
            self._seen = until


def _share(worked_s: float, passed_s: float) -> float:
    return min(1.0, max(0.0, 1.0 - worked_s / passed_s)) if passed_s > 0 else 0.0


# ---------------------------------------------------------------------------------------------- the process's own

_log: SpanLog | None = None
_here = threading.local()


def configure(role: str, *, folder: Path, working: Working | None = None) -> SpanLog:
    """From now on this process's spans go to `folder`/ROLE.jsonl. A second call replaces the first.

    `working`: whether the process is at work, from the number of its open spans by name.
    """
    global _log
    _log = SpanLog(folder / f"{role}.jsonl", role=role, working=working)
    return _log


def begin(name: str, *, track: str | None = None, **facts: int | str) -> Callable[[], None]:
    """A span that does not end where a block ends; call what this returns to end it."""
    spans = _log
    if spans is None:
        return lambda: None
    one = spans.begin(name, track=track or _track(), facts=facts)
    return lambda: spans.end(one)


@contextmanager
def span(name: str, *, track: str | None = None, **facts: int | str) -> Iterator[None]:
    """The block is a span. Spans inside it are on its track."""
    spans = _log
    if spans is None:
        yield
        return
    outer = getattr(_here, "track", None)
    _here.track = track or outer
    one = spans.begin(name, track=_track(), facts=facts)
    try:
        yield
    finally:
        spans.end(one)
        _here.track = outer


def _track() -> str:
    named: str | None = getattr(_here, "track", None)
    thread = threading.current_thread()
    foreign = isinstance(thread, threading._DummyThread)  # not started by Python: it has a number instead of a name
    return named or (MAIN_TRACK if foreign or thread is threading.main_thread() else thread.name)


# ---------------------------------------------------------------------------------------------- reading


def read(folder: Path) -> list[Session]:
    """Every session in the span files of `folder`, ordered by role and start; [] where there are none."""
    files = sorted({path.with_name(path.name.replace(".1.jsonl", ".jsonl")) for path in folder.glob("*.jsonl")})
    drafts: list[tuple[Mapping[str, Any], list[Mapping[str, Any]]]] = []
    for file in files:
        for line in (*read_lines(_older(file)), *read_lines(file)):
            if "boot" in line and not (drafts and _goes_on(drafts[-1][0], line)):
                drafts.append((line, []))
            elif "boot" in line:
                continue
            elif drafts:
                drafts[-1][1].append(line)
    booted_ns: dict[str, int] = {}  # one mapping a boot, whatever the wall clock did later
    for head, _ in sorted(drafts, key=lambda draft: int(draft[0]["clock_ns"])):
        booted_ns.setdefault(head["boot"], head["wall_ns"] - head["clock_ns"])
    return [
        Session(
            role=head["role"],
            pid=head["pid"],
            host=head["host"],
            spans=tuple(_span(line, booted_ns=booted_ns[head["boot"]]) for line in lines),
        )
        for head, lines in drafts
    ]


def _goes_on(head: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether `other` heads the next file of the same process."""
    return all(head[key] == other[key] for key in ("role", "boot", "pid"))


def _span(line: Mapping[str, Any], *, booted_ns: int) -> Span:
    own = {"name", "track", "start_ns", "duration_ns"}
    return Span(
        name=line["name"],
        track=line["track"],
        start_ns=booted_ns + line["start_ns"],
        duration_ns=line["duration_ns"],
        facts={key: value for key, value in line.items() if key not in own},
    )


def _older(path: Path) -> Path:
    return path.with_name(f"{path.stem}.1.jsonl")


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
