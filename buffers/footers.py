"""Footers: what people ask of the episodes in a sealed segment, as columns in a file of its own, so that a query reads
no payload.

    store/footers/START.footer    CRC32C, then an Arrow stream of SCHEMA: a row an EPISODE and a row a FEEDBACK, by LSN

The owner's index thread writes one when a segment is sealed, out of what it was handed; one that is missing (after a
crash, or of an older store) it makes from the segment, one at a time. A footer is a copy: it is never synced, and one
that is missing, damaged, or of another segment costs a reader the time to read the segment instead.
"""

from __future__ import annotations

import logging
import math
import struct
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import cast
from uuid import UUID

import google_crc32c
import numpy as np
import pyarrow as pa

from buffers.codec import peek
from buffers.log.reader import LogReader
from buffers.log.segments import Segment
from contracts.errors import StoreError
from contracts.records import Episode, Feedback, Kind, Record

log = logging.getLogger(__name__)
FORMAT = 1
FOLDER = "footers"
SCHEMA = pa.schema(
    [
        ("lsn", pa.int64()),
        ("about", pa.int64()),  # a FEEDBACK's episode; an episode's own LSN
        ("episode_id", pa.string()),
        ("lease", pa.int64()),  # from here on of an episode alone
        ("member", pa.int32()),
        ("task_id", pa.string()),
        ("environment", pa.string()),
        ("producer", pa.string()),  # of either
        ("stop_reason", pa.string()),
        ("versions", pa.list_(pa.int64())),  # those that acted, rising
        ("reward", pa.float64()),  # of either, as recorded; null: none yet
        ("wall_time", pa.float64()),  # of either; s since 1970
    ]
)
_CRC = struct.Struct("<I")
_LOOK_EVERY_S = 1.0  # for segments that were sealed meanwhile
_OF_INTEREST = (Kind.EPISODE, Kind.FEEDBACK)

Entry = tuple[object, ...]  # a row of SCHEMA


def make_entry(lsn: int, record: Record) -> Entry | None:
    """The row of a record; None for one that has none."""
    if isinstance(record, Episode):
        return (
            lsn, lsn, record.episode_id, record.lease, record.member, record.task_id, record.environment,
            record.producer, record.stop_reason.value, sorted({span.version for span in record.spans}),
            record.reward, record.wall_time,
        )  # fmt: skip
    if isinstance(record, Feedback):
        return (
            lsn, record.episode_lsn, record.episode_id, None, None, None, None, record.producer, None, None,
            record.reward, record.wall_time,
        )  # fmt: skip
    return None


def to_table(entries: Iterable[Entry]) -> pa.Table:
    """Raises StoreError where a column cannot hold a value."""
    columns = list(zip(*entries, strict=True)) or [()] * len(SCHEMA)
    try:
        arrays = [pa.array(column, type=field.type) for column, field in zip(columns, SCHEMA, strict=True)]
    except (pa.ArrowException, OverflowError, TypeError, ValueError) as error:
        raise StoreError(f"a record has a value that no column holds: {error}") from error
    return pa.Table.from_arrays(arrays, schema=SCHEMA)


class Footers:
    """What a reader has of the data log in `store`: a table of SCHEMA a segment, from its footer or from itself."""

    def __init__(self, store: Path, log: LogReader) -> None:
        self._folder, self._log = store / FOLDER, log

    def locate(self, segment: Segment) -> Path:
        """Where its footer lies, if there is one."""
        return self._folder / f"{segment.start_lsn:016x}.footer"

    def read(self, segment: Segment) -> pa.Table | None:
        """The footer of a sealed segment; None where there is none that can be trusted."""
        try:
            data = self.locate(segment).read_bytes()
        except OSError:
            return None
        body = memoryview(data)[_CRC.size :]
        if data[: _CRC.size] != _CRC.pack(google_crc32c.value(bytes(body))):
            return None
        try:
            with pa.ipc.open_stream(body) as stream:
                table = stream.read_all()
        except pa.ArrowInvalid:
            return None
        return table if table.schema.metadata == self._describe(segment) else None

    def scan(self, segment: Segment) -> pa.Table:
        """The same out of the segment. Damaged records are passed over."""
        frames = self._log.scan(segment.start_lsn, segment.end_lsn)
        records = ((frame.lsn, peek(frame.kind, frame.payload)) for frame in frames if frame.kind in _OF_INTEREST)
        return to_table(entry for lsn, record in records if (entry := make_entry(lsn, record)) is not None)

    def write(self, segment: Segment, table: pa.Table) -> None:
        sink = pa.BufferOutputStream()
        described = table.replace_schema_metadata(self._describe(segment)).combine_chunks()
        with pa.ipc.new_stream(sink, described.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as stream:
            stream.write_table(described)
        body = sink.getvalue().to_pybytes()
        path = self.locate(segment)
        draft = path.with_name(f".{path.name}.tmp")
        draft.write_bytes(_CRC.pack(google_crc32c.value(body)) + body)
        draft.rename(path)

    def _describe(self, segment: Segment) -> dict[bytes, bytes]:
        """What a footer says it is of."""
        uuid = self._log.lineage.at(segment.start_lsn)
        return {b"footer": f"{FORMAT} {uuid} {segment.start_lsn} {segment.end_lsn}".encode()}


class FooterWriter:
    """The owner's. `note` each record under the owner's lock, in LSN order from `since` on, and `take` what was noted;
    `gather` it and `look` from one thread. Memory is a row for each episode in segments that are not sealed yet."""

    def __init__(self, store: Path, *, uuid: UUID, since: int) -> None:
        self._folder = store / FOLDER
        self._folder.mkdir(exist_ok=True)
        self._log = LogReader(store / "data", store_uuid=uuid)
        self._footers = Footers(store, self._log)
        self._since = since  # every record from here on is in `_noted` or `_gathered`
        self._hopeless: set[int] = set()  # segments that were read, and have no footer
        self._noted: list[Entry] = []
        self._gathered: list[pa.Table] = []
        self._looked_s = -math.inf

    def note(self, lsn: int, record: Record) -> None:
        entry = make_entry(lsn, record)
        if entry is not None:
            self._noted.append(entry)

    def take(self) -> list[Entry]:
        """What was noted since the last call."""
        noted, self._noted = self._noted, []
        return noted

    def gather(self, noted: list[Entry]) -> None:
        """What cannot be gathered makes no footer: segments that it may be of are read, as if there were none of it."""
        if not noted:
            return
        try:
            self._gathered.append(to_table(noted))
        except StoreError as error:
            last, *_ = noted[-1]
            self._gathered, self._since = [], cast(int, last) + 1
            log.warning("segments have to be read for their footers", extra={"detail": str(error)})

    def look(self, upto: float, *, at_end: bool = False) -> bool:
        """Write the footers of sealed segments, of which all records below `upto` were gathered; whether more is to be
        done. One that has to be read for it is the last for this time; `at_end` leaves those out. Raises OSError."""
        if not at_end and time.monotonic() - self._looked_s < _LOOK_EVERY_S:
            return False
        self._looked_s = time.monotonic()
        sealed = [segment for segment in self._log.segments() if segment.sealed]
        there = set(self._folder.glob("*.footer"))
        missing = [segment for segment in sealed if self._footers.locate(segment) not in there]
        unknown = [one for one in missing if one.start_lsn < self._since and one.start_lsn not in self._hopeless]
        for segment in sealed:
            if self._since <= segment.start_lsn and segment.end_lsn <= upto:
                self._settle(segment, must_write=segment in missing)
        for path in there - set(map(self._footers.locate, sealed)):
            path.unlink()  # its segment was trimmed
        if unknown and not at_end:
            self._write_read(unknown[-1])
        return len(unknown) > 1

    def _settle(self, segment: Segment, *, must_write: bool) -> None:
        """Write what was gathered of a segment, and forget it."""
        table = pa.concat_tables(self._gathered) if self._gathered else to_table(())
        lsns = table["lsn"].to_numpy()
        first, end = np.searchsorted(lsns, (segment.start_lsn, segment.end_lsn))
        if must_write:
            self._footers.write(segment, table.slice(first, end - first))
        rest = table.slice(end).combine_chunks()  # a copy: what is forgotten is freed
        self._gathered, self._since = ([rest] if len(rest) else []), segment.end_lsn

    def _write_read(self, segment: Segment) -> None:
        try:
            table = self._footers.scan(segment)
        except StoreError:
            self._hopeless.add(segment.start_lsn)  # or it was trimmed at this moment
            return
        self._footers.write(segment, table)


def read_segments(store: Path, log: LogReader) -> Iterator[tuple[Segment, pa.Table, bool]]:
    """(segment, its columns, whether from its footer), newest first, up to the watermark."""
    footers = Footers(store, log)
    for segment in reversed(log.segments()):
        table = footers.read(segment) if segment.sealed else None
        yield segment, footers.scan(segment) if table is None else table, table is not None
