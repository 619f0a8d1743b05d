"""What lies in a store: segments, records by kind, what became of every task, and the quarantine. Changes nothing."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from buffers.codec import peek
from buffers.log.reader import LogReader
from buffers.view import StoreView
from contracts.records import Kind, Ledger, Quarantined

OnProgress = Callable[[int, int], None]  # (bytes done, bytes in all)


def ignore(_done: int, _total: int) -> None:
    """For a caller who does not watch."""


@dataclass(frozen=True, kw_only=True)
class LogContents:
    """One log as it lies on disk. `num_bytes` are those that its files take; `torn`: what crashes left half-written."""

    start_lsn: int
    end_lsn: int
    num_segments: int
    num_bytes: int
    records: dict[str, int]  # Kind's name → records
    torn: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Contents:
    """A store. `quarantined`: the newest ones, as (LSN, record without its payload)."""

    uuid: str
    data: LogContents
    control: LogContents
    ledger: Ledger
    quarantined: tuple[tuple[int, Quarantined], ...]


def inspect(folder: Path, *, newest: int = 20, on_progress: OnProgress = ignore) -> Contents:
    """Read the store in `folder`, of a live run or a dead one. `newest`: quarantined episodes to name.

    Raises StoreIdentityError where there is none.
    """
    view = StoreView.open(folder)
    total = view.data_lsn + view.control_lsn
    bad: deque[tuple[int, Quarantined]] = deque(maxlen=newest)
    data = _describe(folder / "data", view.data_lsn, bad, lambda lsn: on_progress(lsn, total))
    control = _describe(folder / "control", view.control_lsn, bad, lambda lsn: on_progress(view.data_lsn + lsn, total))
    return Contents(uuid=str(view.uuid), data=data, control=control, ledger=view.ledger(), quarantined=tuple(bad))


def _describe(
    folder: Path, end_lsn: int, bad: deque[tuple[int, Quarantined]], on_progress: Callable[[int], None]
) -> LogContents:
    reader = LogReader(folder)
    segments = reader.segments()
    records: Counter[str] = Counter()
    for frame in reader.scan(0, end_lsn):
        records[_name(frame.kind)] += 1
        if frame.kind == Kind.QUARANTINED:
            record = peek(frame.kind, frame.payload)
            assert isinstance(record, Quarantined)
            bad.append((frame.lsn, record))
        on_progress(frame.next_lsn)
    return LogContents(
        start_lsn=segments[0].start_lsn,
        end_lsn=end_lsn,
        num_segments=len(segments),
        num_bytes=sum(segment.path.stat().st_size for segment in segments),
        records=dict(sorted(records.items())),
        torn=tuple(sorted(path.name for path in folder.glob("*.torn"))),
    )


def _name(kind: int) -> str:
    try:
        return Kind(kind).name.lower()
    except ValueError:  # written by newer code
        return f"kind {kind}"
