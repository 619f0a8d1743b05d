"""Reads records out of the two logs of a store: for its owner's recovery, and for anyone who only looks."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import cast
from uuid import UUID

from buffers.codec import decode, peek
from buffers.fold import Fold
from buffers.log.frames import Frame
from buffers.log.reader import LogReader
from contracts.errors import StoreError
from contracts.records import Batch, Closed, ControlRecord, Episode, Feedback, Kind, Record, Trim


class Records:
    """Both logs, read-only. Safe to use from several threads."""

    def __init__(self, folder: Path, *, uuid: UUID) -> None:
        self.uuid = uuid
        self.data = LogReader(folder / "data", store_uuid=uuid)
        self.control = LogReader(folder / "control", store_uuid=uuid)

    def scan_data(self, start: int, end: int) -> Iterator[tuple[int, Record]]:
        """(LSN, record without arrays) of the data log from `start` up to `end`."""
        for frame in self.data.scan(start, end):
            yield frame.lsn, peek(frame.kind, frame.payload)

    def scan_control(
        self, start: int, end: int, *, kinds: Collection[Kind] = ()
    ) -> Iterator[tuple[int, ControlRecord]]:
        """`kinds`: none for all."""
        for frame in self.control.scan(start, end):
            if not kinds or frame.kind in kinds:
                yield frame.lsn, cast(ControlRecord, decode(frame.kind, frame.payload))

    def begin(self, fold: Fold, *, control_end: int) -> None:
        """Have an empty fold take up where the data log begins, if it was trimmed."""
        trims = [frame for frame in self.control.scan(0, control_end) if frame.kind == Kind.TRIM]
        if trims:
            fold.begin(cast(Trim, decode(trims[-1].kind, trims[-1].payload)))

    def replay(
        self, *, data: tuple[int, int], control: tuple[int, int], frames: Sequence[Frame] | None = None
    ) -> Iterator[tuple[int, Record]]:
        """Both logs' records between these LSNs as one history: each decision right after the data that it may name.

        A part of the logs may begin in the middle of a frame, which is then no part of it. `frames`: those of the data
        log from there on, where somebody has read them.
        """
        read = self.data.scan(max(0, data[0] - 1), data[1]) if frames is None else frames
        happened = ((frame.lsn, peek(frame.kind, frame.payload)) for frame in read if frame.lsn >= data[0])
        ahead = next(happened, None)
        for lsn, decision in self.scan_control(max(0, control[0] - 1), control[1]):
            if lsn < control[0]:
                continue
            bound = decision.data_lsn if isinstance(decision, Batch | Closed) else 0
            while ahead is not None and ahead[0] < bound:
                yield ahead
                ahead = next(happened, None)
            yield lsn, decision
        yield from chain(() if ahead is None else (ahead,), happened)

    def read_episodes(self, lsns: Sequence[int]) -> list[Episode]:
        """Episodes at these LSNs, in their order. Raises StoreError where there is none.

        At the LSN of a FEEDBACK: the episode that it is about, with that reward.
        """
        return [self._read_episode(lsn) for lsn in lsns]

    def find_episode(self, lsn: int) -> int:
        """The LSN of the episode that the record at `lsn` is, or gives a reward to. Raises StoreError elsewhere."""
        frame = self.data.read(lsn)
        record = decode(frame.kind, frame.payload)
        if isinstance(record, Feedback):
            return record.episode_lsn
        if not isinstance(record, Episode):
            raise StoreError(f"LSN {lsn} of the data log is a {type(record).__name__}, not an Episode")
        return lsn

    def read_decisions(self, start: int, end: int, kinds: Sequence[Kind]) -> list[tuple[int, ControlRecord]]:
        return list(self.scan_control(start, end, kinds=frozenset(kinds)))

    def _read_episode(self, lsn: int) -> Episode:
        frame = self.data.read(lsn)
        record = decode(frame.kind, frame.payload)
        if isinstance(record, Feedback):
            return replace(self._read_episode(record.episode_lsn), reward=record.reward)
        if not isinstance(record, Episode):
            raise StoreError(f"LSN {lsn} of the data log is a {type(record).__name__}, not an Episode")
        return record
