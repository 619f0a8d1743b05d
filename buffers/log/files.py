"""Durable steps on small files and folders: write, sync, then make visible."""

from __future__ import annotations

import errno
import os
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from contracts.errors import StoreFullError, StoreStoppedError, is_disk_full

_ZEROS = bytes(1 << 20)
_MOST_SYNCS = 16  # at once
_MOST_PIECES = 1024  # IOV_MAX: the kernel takes no more at once
_BROKEN = frozenset({errno.EIO, errno.EROFS})  # EROFS: what a file system becomes after errors of its disk


@contextmanager
def in_store_errors(what: str) -> Iterator[None]:
    """Say what the disk refuses in the store's own errors: StoreFullError, or StoreStoppedError where it is broken."""
    try:
        yield
    except OSError as error:
        if is_disk_full(error):
            raise StoreFullError(f"{what}: no room: {error.strerror}") from error
        if error.errno in _BROKEN:
            raise StoreStoppedError(f"{what}: the disk failed: {error!r}") from error
        raise


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` durable: those created, renamed and removed so far."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def make_folder(folder: Path) -> None:
    """Make `folder`, and those above it that are missing, and all their names durable: whoever made them."""
    folder.mkdir(parents=True, exist_ok=True)
    disk = folder.stat().st_dev
    for parent in folder.absolute().parents:
        if parent.stat().st_dev != disk or not os.access(parent, os.R_OK):
            return  # another disk, or not ours to make
        sync_folder(parent)


def sync_file(path: Path) -> None:
    """Make a file, or the names in a folder, durable."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_tree(folder: Path, *, without: Collection[Path] = ()) -> None:
    """Make every file and name below `folder` durable; of the files `without`, which are durable, their names alone.

    All at once: the disk flushes for several at a time. Raises StoreFullError, StoreStoppedError.
    """
    paths = [folder]
    for current, folders, names in os.walk(folder):
        paths += [path for path in (Path(current) / name for name in (*folders, *names)) if path not in without]
    with in_store_errors(f"{folder} is not durable"), ThreadPoolExecutor(min(_MOST_SYNCS, len(paths))) as pool:
        list(pool.map(sync_file, paths))


def write_all(fd: int, data: bytes, *, offset: int) -> None:
    """Write every byte, however few the kernel takes at a time."""
    view = memoryview(data)
    while view:
        count = os.pwrite(fd, view, offset)
        view, offset = view[count:], offset + count


def write_pieces(fd: int, pieces: Sequence[bytes], *, offset: int) -> None:
    """`write_all` of what lies in many pieces, without a copy."""
    for first in range(0, len(pieces), _MOST_PIECES):
        some = pieces[first : first + _MOST_PIECES]
        num_bytes, count = sum(map(len, some)), os.pwritev(fd, some, offset)
        if count < num_bytes:
            write_all(fd, b"".join(some)[count:], offset=offset + count)
        offset += num_bytes


def write_durably(path: Path, data: bytes, *, replace: bool = True) -> None:
    """Make `path` hold `data` after any crash, or what it held before: temp, fsync, rename, folder fsync.

    With `replace=False` an existing `path` is left alone: FileExistsError.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        write_all(fd, data, offset=0)
        os.fsync(fd)
        if replace:
            temporary.replace(path)
        else:  # a hard link, unlike rename, never takes a name that is in use
            path.hardlink_to(temporary)
            temporary.unlink()
        sync_folder(path.parent)
    finally:
        os.close(fd)
        temporary.unlink(missing_ok=True)


def find_data_end(fd: int, begin: int) -> int:
    """Offset just past the last byte that is not zero, at or after `begin`; `begin` if there is none.

    Holes and preallocated space are skipped by asking the file system, not read. What was read of preallocated space,
    even ahead by the kernel, counts as data from then on: so it is asked for all first, and nothing is read ahead.
    """
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
    for start, stop in reversed(_list_data(fd, begin)):
        while stop > start:
            offset = max(start, stop - len(_ZEROS))
            chunk = os.pread(fd, stop - offset, offset)
            if chunk != _ZEROS[: len(chunk)]:  # stripping zeros is a hundred times slower than comparing them
                return offset + len(chunk.rstrip(b"\0"))
            stop = offset
    return begin


def _list_data(fd: int, begin: int) -> list[tuple[int, int]]:
    """(start, stop) offsets of what is no hole, at or after `begin`."""
    found: list[tuple[int, int]] = []
    position = begin
    while True:
        try:
            start = os.lseek(fd, position, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole from here on
                return found
            raise
        position = os.lseek(fd, start, os.SEEK_HOLE)
        found.append((start, position))
