"""Reads records out of the two logs of a store: for its owner's recovery, and for anyone who only looks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast
from uuid import UUID

from buffers.codec import decode, peek
from buffers.log.reader import LogReader
from contracts.errors import StoreError
from contracts.records import ControlRecord, Episode, Kind, Record


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

    def scan_control(self, start: int, end: int) -> Iterator[tuple[int, ControlRecord]]:
        for frame in self.control.scan(start, end):
            yield frame.lsn, cast(ControlRecord, decode(frame.kind, frame.payload))

    def read_episodes(self, lsns: Sequence[int]) -> list[Episode]:
        """Episodes at these LSNs, in their order. Raises StoreError where there is none."""
        return [self._read_episode(lsn) for lsn in lsns]

    def read_decisions(self, start: int, end: int, kinds: Sequence[Kind]) -> list[tuple[int, ControlRecord]]:
        wanted = frozenset(kinds)
        return [(lsn, record) for lsn, record in self.scan_control(start, end) if not wanted or record.KIND in wanted]

    def _read_episode(self, lsn: int) -> Episode:
        frame = self.data.read(lsn)
        record = decode(frame.kind, frame.payload)
        if not isinstance(record, Episode):
            raise StoreError(f"LSN {lsn} of the data log is a {type(record).__name__}, not an Episode")
        return record
