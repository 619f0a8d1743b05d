"""`ratchet trace RUN --step N`: what every process did during a step, as a file that https://ui.perfetto.dev opens.

The file is in the JSON trace event format: a complete event ("X", times in microseconds) a span, metadata events ("M")
that name processes and tracks. Perfetto wants the events of one track nested; spans that overlap without being nested
(an engine's calls) are put on tracks beside each other.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from console.run_folder import resolve
from contracts.errors import RunFolderError
from telemetry.spans import Session, Span, read

LEARNER = "update-"
PARTS = ("wait", "read", "update", "save", "decide", "publish", "checkpoint", "evaluate")


def trace(
    run: Annotated[str, typer.Argument(metavar="RUN")],
    step: Annotated[int | None, typer.Option(metavar="N", help="Default: the newest.")] = None,
    steps: Annotated[int, typer.Option(metavar="M", min=1, help="How many steps from there on.")] = 1,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Default: a file in the run's folder.")] = None,
) -> None:
    """Write what every process did during a step, for https://ui.perfetto.dev."""
    folder = resolve(run)
    sessions = read(folder / "spans")
    first = newest_step(folder, sessions) if step is None else step
    window = find_window(folder, sessions, first=first, last=first + steps - 1)
    file = out or folder / "traces" / f"step-{first:06d}.json"
    write(file, json.dumps(render(sessions, window=window)) + "\n")
    typer.echo(describe(sessions, window))
    typer.echo(f"open it with https://ui.perfetto.dev (nothing is uploaded): {file}")


def write(file: Path, text: str) -> None:
    """Write a file whole or not at all. Raises RunFolderError where it cannot be written."""
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        draft.write_text(text, encoding="utf-8")
        draft.replace(file)
    except OSError as error:
        raise RunFolderError(
            f"the file {file}", f"it cannot be written: {error.strerror or error}", "name another: --out FILE"
        ) from None


def steps_of(sessions: Sequence[Session]) -> dict[int, list[Span]]:
    """The learner's spans by step. A step that was computed again after a crash has those of its newest session."""
    found: dict[int, list[Span]] = {}
    for session in sorted(_learners(sessions), key=lambda session: session.spans[0].start_ns):
        here: dict[int, list[Span]] = {}
        for one in session.spans:
            if isinstance(step := one.facts.get("step"), int):
                here.setdefault(step, []).append(one)
        found.update(here)
    return found


def newest_step(folder: Path, sessions: Sequence[Session]) -> int:
    """Raises RunFolderError where no step was made yet."""
    found = [step for step, spans in steps_of(sessions).items() if any(one.name == "update" for one in spans)]
    if not found:
        raise RunFolderError(
            f"a trace of {folder.name}", "it has no spans of a finished step yet", f"see: ratchet status {folder.name}"
        )
    return max(found)


def find_window(folder: Path, sessions: Sequence[Session], *, first: int, last: int) -> tuple[int, int]:
    """From the beginning of step `first` to the end of step `last`, nanoseconds since 1970. Raises RunFolderError."""
    found = steps_of(sessions)
    missing = [step for step in range(first, last + 1) if step not in found]
    if missing:
        known = f"there are spans of steps {min(found)} to {max(found)}" if found else "there are no spans"
        raise RunFolderError(
            f"a trace of {folder.name}, step {missing[0]}",
            f"{known}; those of long ago are dropped",
            "name one of these: ratchet trace RUN --step N" if found else f"see: ratchet status {folder.name}",
        )
    spans = [one for step in range(first, last + 1) for one in found[step]]
    return min(one.start_ns for one in spans), max(one.end_ns for one in spans)


def render(sessions: Sequence[Session], *, window: tuple[int, int]) -> dict[str, Any]:
    """The trace of all spans that touch the window. Time 0 is when the first of them began."""
    start_ns, end_ns = window
    spans: dict[str, list[Span]] = {}
    for session in sessions:
        touching = [one for one in session.spans if one.start_ns <= end_ns and one.end_ns >= start_ns]
        spans.setdefault(session.role, []).extend(touching)
    zero_ns = min(one.start_ns for each in spans.values() for one in each)
    events: list[dict[str, Any]] = []
    for pid, role in enumerate(sorted(spans), start=1):
        events += _name("process_name", role, pid=pid)
        for tid, (track, lane) in enumerate(lanes(spans[role]), start=1):
            events += _name("thread_name", track, pid=pid, tid=tid)
            events += [_event(one, pid=pid, tid=tid, zero_ns=zero_ns) for one in lane]
    moment = datetime.fromtimestamp(zero_ns / 1e9, UTC).isoformat(timespec="microseconds")
    return {"traceEvents": events, "displayTimeUnit": "ms", "otherData": {"time 0": moment}}


def lanes(spans: Iterable[Span]) -> list[tuple[str, list[Span]]]:
    """(track, spans in order of their start), tracks by name. Spans of one lane are apart or nested."""
    found: dict[str, list[Lane]] = {}
    for one in sorted(spans, key=lambda one: (one.start_ns, -one.duration_ns)):
        beside = found.setdefault(one.track, [])
        if not any(lane.take(one) for lane in beside):
            beside.append(Lane(one))
    return [
        (track if number == 1 else f"{track} {number}", lane.spans)
        for track, beside in sorted(found.items())
        for number, lane in enumerate(beside, start=1)
    ]


class Lane:
    """Spans that are apart or nested, in order of their start."""

    def __init__(self, first: Span) -> None:
        self.spans = [first]
        self._around = [first]  # those that were not over when the newest began, each inside the one before

    def take(self, one: Span) -> bool:
        """Add a span that begins after all that are here, unless it would overlap one of them."""
        while self._around and self._around[-1].end_ns <= one.start_ns:
            self._around.pop()
        if self._around and self._around[-1].end_ns < one.end_ns:
            return False
        self.spans.append(one)
        self._around.append(one)
        return True


def describe(sessions: Sequence[Session], window: tuple[int, int]) -> str:
    """One line: how long the learner took, and for what."""
    start_ns, end_ns = window
    seconds = dict.fromkeys(PARTS, 0.0)
    for session in _learners(sessions):
        for one in session.spans:
            if one.name in seconds and one.start_ns >= start_ns and one.end_ns <= end_ns:
                seconds[one.name] += one.duration_ns / 1e9
    parts = ", ".join(f"{name} {spent:.3f}" for name, spent in seconds.items() if spent)
    return f"{(end_ns - start_ns) / 1e9:.3f} s of the learner's time: {parts}"


def _learners(sessions: Sequence[Session]) -> list[Session]:
    return [session for session in sessions if session.role.startswith(LEARNER) and session.spans]


def _event(one: Span, *, pid: int, tid: int, zero_ns: int) -> dict[str, Any]:
    return {
        "ph": "X",
        "name": one.name,
        "cat": "ratchet",
        "ts": (one.start_ns - zero_ns) / 1e3,
        "dur": one.duration_ns / 1e3,
        "pid": pid,
        "tid": tid,
        "args": dict(one.facts),
    }


def _name(kind: str, name: str, *, pid: int, tid: int = 0) -> list[dict[str, Any]]:
    """Metadata: a name, and the place in the list that the number gives."""
    order = {"process_name": ("process_sort_index", pid), "thread_name": ("thread_sort_index", tid)}[kind]
    head = {"ph": "M", "pid": pid, "tid": tid, "cat": "__metadata"}
    return [
        {**head, "name": kind, "args": {"name": name}},
        {**head, "name": order[0], "args": {"sort_index": order[1]}},
    ]
