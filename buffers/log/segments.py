"""Segment files: the logical log cut into pieces, each named by the LSN at which it starts.

    made (temp, preallocated, SCHEMA, fsync, link, folder fsync) ─► written ─► sealed (truncated to what is used, fsync)

The byte at LSN x lies at offset x - start_lsn of the segment. A segment ends where the next one starts.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from uuid import UUID

import numpy as np

from buffers.log.files import find_data_end, sync_folder, write_all, write_pieces
from buffers.log.frames import (
    HEADER_BYTES,
    RawFrame,
    Schema,
    count_unpadded_bytes,
    decode,
    decode_header,
    decode_schema,
    derive_salt,
)
from contracts.errors import FencedError, StoreFullError, StoreIdentityError, is_disk_full

_NAME = re.compile(r"([0-9a-f]{16})\.seg")
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Segment:
    """A segment file as a reader sees it: frames from `start_lsn` up to `end_lsn`; `sealed` ones never change."""

    start_lsn: int
    end_lsn: int
    path: Path
    sealed: bool


class Gap(NamedTuple):
    """Bytes from `start` to `end` that are no frame. `end` is the next whole frame, or where the walk ended."""

    start: int
    end: int


def list_starts(folder: Path) -> list[int]:
    """Start LSNs of the segments in `folder`, rising."""
    matches = (_NAME.fullmatch(path.name) for path in folder.iterdir())
    return sorted(int(match[1], 16) for match in matches if match)


def name_segment(folder: Path, start_lsn: int) -> Path:
    return folder / f"{start_lsn:016x}.seg"


class SegmentFile:
    """The one segment that is being written."""

    def __init__(self, fd: int, *, path: Path, start_lsn: int, size: int) -> None:
        self.path, self.start_lsn, self.limit_lsn = path, start_lsn, start_lsn + size
        self._fd = fd

    @classmethod
    def create(cls, folder: Path, *, start_lsn: int, size: int, schema: bytes, reserve_bytes: int = 0) -> SegmentFile:
        """A segment that holds `schema` and room for `size` bytes in all, durable before it has its name.

        Raises StoreFullError, leaving nothing behind, where the disk cannot hold it and keep `reserve_bytes` free;
        FencedError where another owner has made it.
        """
        space = os.statvfs(folder)
        free_bytes = space.f_bavail * space.f_frsize
        if free_bytes < size + reserve_bytes:
            raise StoreFullError(
                f"{folder}: a segment takes {size} bytes and {reserve_bytes} are kept in reserve; {free_bytes} are free"
            )
        path = name_segment(folder, start_lsn)
        temporary = folder / f".{path.name}.{os.getpid()}.tmp"
        with ExitStack() as undo:
            undo.callback(temporary.unlink, missing_ok=True)
            try:
                fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
                undo.callback(os.close, fd)
                os.posix_fallocate(fd, 0, size)
                write_all(fd, schema, offset=0)
                os.fsync(fd)
                path.hardlink_to(temporary)  # unlike rename, never takes a name that is in use
            except OSError as error:
                if is_disk_full(error):
                    raise StoreFullError(
                        f"{folder}: no room for a segment of {size} bytes: {error.strerror}"
                    ) from error
                if isinstance(error, FileExistsError):
                    raise FencedError(f"{path} was made by another owner") from error
                raise
            temporary.unlink()
            sync_folder(folder)  # the log goes on in a file with a name: an error from here on is no refusal
            undo.pop_all()
        return cls(fd, path=path, start_lsn=start_lsn, size=size)

    def write(self, pieces: Sequence[bytes], *, lsn: int) -> None:
        write_pieces(self._fd, pieces, offset=lsn - self.start_lsn)

    def sync(self) -> None:
        os.fdatasync(self._fd)

    def cut(self, end_lsn: int) -> None:
        """Take back everything from `end_lsn` on, durably: no byte of it is ever read as a frame again."""
        os.ftruncate(self._fd, end_lsn - self.start_lsn)
        os.fsync(self._fd)

    def close(self) -> None:
        os.close(self._fd)


class _Window:
    """Reads a segment in large pieces, and frames out of them."""

    def __init__(self, fd: int, *, start_lsn: int, chunk_bytes: int) -> None:
        self._fd, self._start_lsn, self._chunk_bytes = fd, start_lsn, chunk_bytes
        self._data, self._base_lsn = b"", start_lsn
        self._salts: dict[int, int] = {}  # of the epochs that were met

    def read(self, lsn: int, *, end: int, uuid: UUID | None) -> RawFrame | None:
        """The whole frame at `lsn`; None where there is none, or one of another life or beyond `end`."""
        offset = lsn - self._base_lsn
        if not 0 <= offset <= len(self._data) - HEADER_BYTES:
            offset = self._fetch(lsn, HEADER_BYTES)
        header = decode_header(self._data, offset, lsn=lsn)
        if header is None or (uuid is not None and header.salt != self._find_salt(uuid, header.epoch)):
            return None
        size = count_unpadded_bytes(header)
        if lsn + size > end:
            return None
        if offset + size > len(self._data):
            offset = self._fetch(lsn, size)
            if size > len(self._data):
                return None
        return decode(header, self._data, offset)

    def _fetch(self, lsn: int, num_bytes: int) -> int:
        """Have the bytes from `lsn` on, as far as there are any; their offset."""
        self._data = os.pread(self._fd, max(num_bytes, self._chunk_bytes), lsn - self._start_lsn)
        self._base_lsn = lsn
        return 0

    def _find_salt(self, uuid: UUID, epoch: int) -> int:
        salt = self._salts.get(epoch)
        if salt is None:
            salt = self._salts[epoch] = derive_salt(uuid, self._start_lsn, epoch)
        return salt


def read_frame(fd: int, lsn: int, *, start_lsn: int, end: int, uuid: UUID) -> RawFrame | None:
    """The whole frame at `lsn`, or None."""
    return _Window(fd, start_lsn=start_lsn, chunk_bytes=16 << 10).read(lsn, end=end, uuid=uuid)


def read_schema(path: Path, *, start_lsn: int, uuid: UUID | None) -> Schema | None:
    """What heads the segment, or None where that frame is damaged.

    Raises FormatError on an unknown version, StoreIdentityError on a segment of another store than `uuid`.
    """
    fd = os.open(path, os.O_RDONLY)
    try:
        window = _Window(fd, start_lsn=start_lsn, chunk_bytes=4096)
        frame = window.read(start_lsn, end=start_lsn + (1 << 20), uuid=None)
    finally:
        os.close(fd)
    if frame is None or not frame.is_schema:
        return None
    schema = decode_schema(frame)
    if uuid is not None and schema.uuid != uuid:
        raise StoreIdentityError(f"{path} belongs to store {schema.uuid}, not to {uuid}")
    return schema


def walk(fd: int, *, start_lsn: int, begin: int, end: int, uuid: UUID) -> Iterator[RawFrame | Gap]:
    """Frames from LSN `begin` up to `end` of the segment, and the gaps between them."""
    window = _Window(fd, start_lsn=start_lsn, chunk_bytes=_CHUNK_BYTES)
    lsn = begin
    while lsn < end:
        frame = window.read(lsn, end=end, uuid=uuid)
        if frame is None:
            found = _find_frame(fd, start_lsn=start_lsn, begin=lsn + 8, end=end, uuid=uuid)
            yield Gap(lsn, found)
            lsn = found
        else:
            yield frame
            lsn = frame.next_lsn


def _find_frame(fd: int, *, start_lsn: int, begin: int, end: int, uuid: UUID) -> int:
    """LSN of the first whole frame at or after `begin`; `end` if there is none.

    Each frame holds its own LSN 8 bytes after its start: only where a word says its own position less 8 can one be.
    """
    window = _Window(fd, start_lsn=start_lsn, chunk_bytes=_CHUNK_BYTES)
    stop = min(end, start_lsn + find_data_end(fd, begin - start_lsn))
    lsn = begin
    while lsn < stop:
        chunk = os.pread(fd, _CHUNK_BYTES, lsn - start_lsn)
        words = np.frombuffer(chunk, dtype="<u8", count=len(chunk) // 8)
        if not len(words):
            break
        own = np.arange(lsn - 8, lsn - 8 + 8 * len(words), 8, dtype=np.uint64)
        for index in np.flatnonzero(words == own):
            candidate = lsn + 8 * int(index) - 8
            if candidate >= begin and window.read(candidate, end=end, uuid=uuid) is not None:
                return candidate
        lsn += 8 * len(words)
    return end
