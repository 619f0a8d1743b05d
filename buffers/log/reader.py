"""Read a log: the owner, or any other process while the owner writes. Never writes; shows only what is durable."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import UUID

from buffers.log.ending import read_end
from buffers.log.frames import FIRST_DIGEST, Frame, RawFrame
from buffers.log.lineage import Lineage, lineage_of, read_lineage
from buffers.log.recovery import examine
from buffers.log.segments import Gap, Segment, list_starts, name_segment, read_frame, read_schema, walk
from buffers.log.watermark import read_watermark
from contracts.errors import FormatError, RotError, StoreError, StoreIdentityError


class LogReader:
    """Frames by LSN and in order. May be shared between threads.

    Raises StoreIdentityError where there is no log, or it belongs to another store than `store_uuid` (None: any);
    FormatError on a version that this code does not know.
    """

    def __init__(self, folder: Path, *, store_uuid: UUID | None = None) -> None:
        self._folder = folder
        self._starts = list_starts(folder) if folder.is_dir() else []
        if not self._starts:
            raise StoreIdentityError(f"{folder}: there is no log here")
        known = read_lineage(folder) if store_uuid is None else lineage_of(folder, store_uuid)
        schemas = (
            read_schema(name_segment(folder, start), start_lsn=start, uuid=None if known is None else known.at(start))
            for start in reversed(self._starts)  # the oldest may be trimmed at this moment
        )
        schema = next((schema for schema in schemas if schema is not None), None)
        if schema is None:
            raise RotError(f"{folder}: no segment has a readable head")
        self.lineage = known or Lineage(schema.uuid, ())
        self.uuid, self.chained = self.lineage.uuid, schema.chained
        self._watermark_lsn = 0
        self._settled_lsn: int | None = None  # where a log without a watermark file ends

    def watermark(self) -> int:
        """All bytes below this LSN are durable; read again at each call.

        Without a watermark file (a snapshot; after a power loss) it is where its `end` says, or recovery would end it.
        """
        mark = read_watermark(self._folder)
        if mark is not None and mark.uuid == self.uuid:
            self._watermark_lsn = mark.durable_lsn
        else:
            if self._settled_lsn is None:
                end = read_end(self._folder)
                self._settled_lsn = examine(self._folder, uuid=self.uuid).end_lsn if end is None else end
            self._watermark_lsn = self._settled_lsn
        return self._watermark_lsn

    def read(self, lsn: int) -> Frame:
        """The frame at `lsn`. Raises StoreError where none starts, RotError where it is damaged."""
        if lsn >= self._watermark_lsn and lsn >= self.watermark():
            raise StoreError(f"{self._folder}: no frame at LSN {lsn}: the log is durable up to {self._watermark_lsn}")
        frame = self._read(lsn)
        if frame is None:
            self._starts = list_starts(self._folder)  # it may lie in a segment that is new to us
            frame = self._read(lsn)
        if frame is not None:
            return frame.to_frame()
        for item in self.walk():
            if isinstance(item, Gap) and item.start <= lsn < item.end:
                raise RotError(f"{self._folder}: LSN {lsn} is damaged: no frame from {item.start} to {item.end}")
        raise StoreError(f"{self._folder}: no frame starts at LSN {lsn}")

    def scan(self, start: int = 0, end: int | None = None) -> Iterator[Frame]:
        """Records with start <= LSN < end, up to the watermark as it is now.

        Damaged ranges are passed over; `rot` tells them.
        """
        for item in self.walk(start, end):
            if isinstance(item, RawFrame) and not item.is_schema:
                yield item.to_frame()

    def rot(self) -> list[tuple[int, int]]:
        """(start, end) LSNs of the damaged ranges below the watermark. Reads the whole log."""
        return [(item.start, item.end) for item in self.walk() if isinstance(item, Gap)]

    def segments(self, since: int = 0) -> list[Segment]:
        """The segments as they are now, from the one that holds LSN `since` on. The last one ends at the watermark."""
        watermark = self.watermark()
        self._starts = list_starts(self._folder)
        segments = []
        starts = self._starts[max(0, bisect_right(self._starts, since) - 1) :]
        for start, limit in zip(starts, [*starts[1:], None], strict=True):
            path = name_segment(self._folder, start)
            end = max(watermark, start) if limit is None else limit
            segments.append(Segment(start, end, path, limit is not None or start + path.stat().st_size == end))
        return segments

    def walk(self, start: int = 0, end: int | None = None) -> Iterator[RawFrame | Gap]:
        """Whole frames with start <= LSN < end, SCHEMA ones too, and the gaps between them."""
        for segment in self.segments(since=start):
            limit = segment.end_lsn if end is None else min(end, segment.end_lsn)
            begin = max(start + -start % 8, segment.start_lsn)
            if begin >= limit:
                continue
            with _opened(segment.path) as fd:
                uuid = self.lineage.at(segment.start_lsn)
                span = walk(fd, start_lsn=segment.start_lsn, begin=begin, end=segment.end_lsn, uuid=uuid)
                for item in span:
                    if (item.start if isinstance(item, Gap) else item.header.lsn) >= limit:
                        break
                    yield item

    def _read(self, lsn: int) -> RawFrame | None:
        index = bisect_right(self._starts, lsn)
        if index == 0:
            raise StoreError(f"{self._folder}: no segment holds LSN {lsn}: it was trimmed")
        start_lsn = self._starts[index - 1]
        end = self._starts[index] if index < len(self._starts) else self._watermark_lsn
        with _opened(name_segment(self._folder, start_lsn)) as fd:
            return read_frame(fd, lsn, start_lsn=start_lsn, end=end, uuid=self.lineage.at(start_lsn))


def verify_chain(reader: LogReader) -> int:
    """Check that each frame of a chained log carries the hash of the one before; the number of frames.

    Raises RotError where the chain is broken: a frame was damaged, altered, or taken out. FormatError without a chain.
    """
    if not reader.chained:
        raise FormatError("this log was made without a chain")
    digest, count = None, 0
    for item in reader.walk():
        if isinstance(item, Gap):
            raise RotError(f"the chain is broken: no frame from LSN {item.start} to {item.end}")
        expected = FIRST_DIGEST if item.header.lsn == 0 else digest
        if expected is not None and item.previous != expected:
            raise RotError(f"the chain is broken: the frame before LSN {item.header.lsn} is not the one written")
        digest, count = item.digest, count + 1
    return count


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    try:
        fd = os.open(path, os.O_RDONLY)
    except FileNotFoundError as error:
        raise StoreError(f"{path.parent}: {path.name} is gone: it was trimmed") from error
    try:
        yield fd
    finally:
        os.close(fd)
