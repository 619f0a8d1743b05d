"""Reads many frames at random through mapped segments: no call to the owner, no copy, no system call a frame.

Shows only what is below the watermark that `refresh` saw. A segment that is trimmed while it is mapped stays readable.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Sequence
from pathlib import Path
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

from buffers.log.frames import HEADER_BYTES, decode, decode_header
from buffers.log.reader import LogReader
from buffers.log.segments import list_starts, name_segment
from contracts.errors import RotError, StoreError

_LENGTH_AND_LSN = struct.Struct("<I4xQ")  # the first fields of a frame's header


class MappedLog:
    """Payloads by LSN, of a log without a chain. Not for several threads."""

    def __init__(self, folder: Path, *, uuid: UUID) -> None:
        self._folder, self._reader = folder, LogReader(folder, store_uuid=uuid)
        self._starts = np.zeros(0, dtype=np.int64)
        self._maps: dict[int, memoryview] = {}  # start LSN → the segment's bytes
        self.durable_lsn = 0
        self.refresh()

    def refresh(self) -> None:
        """Take in what became durable since."""
        self.durable_lsn = self._reader.watermark()
        self._starts = np.array(list_starts(self._folder), dtype=np.int64)

    @property
    def first_lsn(self) -> int:
        """Where the log begins."""
        return int(self._starts[0]) if len(self._starts) else 0

    def map_all(self) -> None:
        """Map every segment: those that are trimmed from now on stay readable here. Address space, no memory."""
        starts = self._starts.tolist()
        for start in starts:
            if start not in self._maps:
                self._map(start)
        for start in self._maps.keys() - set(starts):
            del self._maps[start]

    def payloads(self, lsns: Sequence[int] | NDArray[np.int64], *, verify: bool = False) -> list[memoryview]:
        """Views of the records' bytes, in the order of `lsns`; they live as long as somebody holds them.

        `verify` compares checksums, which the owner did when it recovered. Raises StoreError where no frame starts at
        an LSN, or it is above the watermark; RotError where a checksum fails.
        """
        places = np.asarray(lsns, dtype=np.int64)
        if not len(places):
            return []
        segments = self._starts.searchsorted(places, side="right") - 1
        if segments.min() < 0 or places.max() >= self.durable_lsn:
            outside = places[(segments < 0) | (places >= self.durable_lsn)]
            raise StoreError(
                f"{self._folder}: no frame at LSN {outside[0]}: the log begins at {self.first_lsn} and is durable up "
                f"to {self.durable_lsn}"
            )
        starts = self._starts[segments]
        maps, unpack, found = self._maps, _LENGTH_AND_LSN.unpack_from, []
        for lsn, start, offset in zip(places.tolist(), starts.tolist(), (places - starts).tolist(), strict=True):
            view = maps.get(start)
            if view is None:
                view = self._map(start)
            try:
                length, own = unpack(view, offset)
            except struct.error:
                length, own = 0, -1  # past the end of its segment
            if own != lsn:
                raise StoreError(f"{self._folder}: no frame starts at LSN {lsn}")
            if verify:
                self._verify(view, offset, lsn)
            begin = offset + HEADER_BYTES
            found.append(view[begin : begin + length])
        return found

    def _map(self, start: int) -> memoryview:
        path = name_segment(self._folder, start)
        try:
            with path.open("rb") as file:
                view = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        except (FileNotFoundError, ValueError) as error:
            raise StoreError(f"{self._folder}: {path.name} is gone: it was trimmed") from error
        self._maps[start] = view
        return view

    def _verify(self, view: memoryview, offset: int, lsn: int) -> None:
        header = decode_header(bytes(view[offset : offset + HEADER_BYTES]), lsn=lsn)
        if header is None or decode(header, bytes(view[offset : offset + HEADER_BYTES + header.length])) is None:
            raise RotError(f"{self._folder}: the frame at LSN {lsn} is damaged")
