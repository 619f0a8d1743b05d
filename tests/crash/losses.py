"""What a power loss may leave of a folder: every legal outcome within a few operations of the last sync.

A `Recorder` hears each file operation of the log (tests/crash/disk.py). A file's content and a folder's names are two
things: a sync of a file keeps its content and size, a sync of a folder the names in it. What was not synced may be kept
or lost, each operation by itself, whatever came before or after it; of the newest write any 512-byte sector may be the
old one, the new one, or zeros, and its end may be missing from any byte on.

Not covered: disks that answer a flush before it is done; more than `DEPTH` operations in doubt at once in every
combination (older ones are then all kept or all lost); sectors that change without being written (that is rot).
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path

from tests.crash.disk import Operation
from tests.unit.buffers.log.logs import boot_again

SECTOR_BYTES = 512
DEPTH = 3  # operations in doubt that are tried in every combination
Files = dict[str, tuple[bytes, int] | None]  # path below the folder → what it begins with, and its size; None: a folder


@dataclass(frozen=True)
class Outcome:
    """What the disk may hold after the power went, and how many promises had been made by then."""

    files: Files
    promises: int
    why: str

    def restore(self, folder: Path) -> None:
        """Make `folder` hold it, as another boot of the machine finds it."""
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for name, content in self.files.items():
            if content is None:
                (folder / name).mkdir(exist_ok=True)
                continue
            data, size = content
            (folder / name).write_bytes(boot_again(data) if name.endswith("watermark") and any(data) else data)
            os.truncate(folder / name, size)


@dataclass
class _Content:
    """A file's bytes; from the end of `data` up to `size` they are zeros."""

    data: bytearray = field(default_factory=bytearray)
    size: int = 0

    def copy(self) -> _Content:
        return _Content(bytearray(self.data), self.size)

    def write(self, piece: bytes, *, offset: int) -> None:
        end = offset + len(piece)
        self.data.extend(bytes(max(0, end - len(self.data))))
        self.data[offset:end] = piece
        self.size = max(self.size, end)


@dataclass
class _Disk:
    """Contents by file number, names by path; number 0 is a folder."""

    contents: dict[int, _Content] = field(default_factory=dict)
    names: dict[Path, int] = field(default_factory=dict)

    def copy(self) -> _Disk:
        return _Disk({number: content.copy() for number, content in self.contents.items()}, dict(self.names))

    def apply(self, operation: Operation) -> None:
        content = self.contents.setdefault(operation.inode, _Content())
        match operation.name:
            case "create" | "make_folder":
                self.names[operation.path] = operation.inode
            case "link" | "rename":
                assert operation.target is not None
                self.names[operation.target] = operation.inode
                if operation.name == "rename":
                    self.names.pop(operation.path, None)
            case "unlink":
                self.names.pop(operation.path, None)
            case "write":
                content.write(operation.data, offset=operation.offset)
            case "truncate":
                del content.data[operation.size :]
                content.size = operation.size
            case "allocate":
                content.size = max(content.size, operation.size)

    def list_files(self, root: Path) -> Files:
        """What can be reached: a file in a folder whose own name was lost is lost too."""
        files: Files = {}
        for path, number in sorted(self.names.items()):
            between = [parent for parent in path.parents if parent != root and parent.is_relative_to(root)]
            if all(parent in self.names for parent in between):
                content = self.contents[number]
                files[path.relative_to(root).as_posix()] = (bytes(content.data), content.size) if number else None
        return files


class Recorder:
    """Give it to `watched` as `after`, before the first file is made; `promise` when something was acknowledged."""

    def __init__(self, folder: Path, *, ignore: str = "") -> None:
        """`ignore`: names below the folder that begin so are another's, and never there afterwards."""
        self._root, self._ignore = folder.absolute(), ignore
        self._events: list[Operation | None] = []  # None: a promise
        self._numbers: dict[int, int] = {}  # inode → file number: an inode is used again, a number never
        self._num_files = 0

    def __call__(self, operation: Operation) -> None:
        inner = operation.path.relative_to(self._root).as_posix()
        if self._ignore and inner.startswith(self._ignore):
            return
        if operation.name == "create":
            self._num_files += 1
            self._numbers[operation.inode] = self._num_files
        number = 0 if operation.name == "make_folder" else self._numbers.get(operation.inode)
        if number is not None or operation.name == "sync_folder":
            self._events.append(replace(operation, inode=number or 0))

    def promise(self) -> None:
        self._events.append(None)

    @property
    def num_operations(self) -> int:
        return sum(event is not None for event in self._events)

    def list_outcomes(self, *, every_byte: bool = False) -> list[Outcome]:
        """Each outcome once, with the most promises after which it is possible. `every_byte`: where a write may end."""
        found: dict[tuple[tuple[str, tuple[bytes, int] | None], ...], Outcome] = {}
        for outcome in self._outcomes(every_byte=every_byte):
            found[tuple(outcome.files.items())] = outcome  # promises only rise
        return list(found.values())

    def _outcomes(self, *, every_byte: bool) -> Iterator[Outcome]:
        safe, doubtful, promises = _Disk(), list[Operation](), 0
        for event in self._events:
            if event is None:
                promises += 1
            elif event.name in ("sync", "sync_folder"):
                kept = [one for one in doubtful if _is_kept_by(event, one)]
                doubtful = [one for one in doubtful if one not in kept]
                for one in kept:
                    safe.apply(one)
            else:
                doubtful.append(event)
            for disk, why in _lose(safe, doubtful, every_byte=every_byte):
                yield Outcome(disk.list_files(self._root), promises, why)


_ON_NAMES = ("create", "make_folder", "link", "rename", "unlink")


def _is_kept_by(sync: Operation, operation: Operation) -> bool:
    if sync.name == "sync":
        return operation.name not in _ON_NAMES and operation.inode == sync.inode
    changed = operation.path if operation.target is None else operation.target
    return operation.name in _ON_NAMES and changed.parent == sync.path


def _lose(safe: _Disk, doubtful: list[Operation], *, every_byte: bool) -> Iterator[tuple[_Disk, str]]:
    older, newest = doubtful[:-DEPTH], doubtful[-DEPTH:]
    for older_kept in (True, False) if older else (True,):
        for fates in product((True, False), repeat=len(newest)):
            disk = safe.copy()
            for operation in older if older_kept else ():
                disk.apply(operation)
            kept = [operation for operation, fate in zip(newest, fates, strict=True) if fate]
            for operation in kept:
                disk.apply(operation)
            why = f"of {[one.name for one in doubtful]} kept {[one.name for one in kept]}, older ones: {older_kept}"
            yield disk, why
            if kept and kept[-1] is newest[-1] and kept[-1].name == "write":
                yield from _break_write(disk, safe, kept[-1], every_byte=every_byte, why=why)


def _break_write(
    whole: _Disk, safe: _Disk, write: Operation, *, every_byte: bool, why: str
) -> Iterator[tuple[_Disk, str]]:
    """The same disk with a part of its newest write missing."""
    begin, end = write.offset, write.offset + len(write.data)
    old = bytes(safe.contents.get(write.inode, _Content()).data).ljust(end, b"\0")
    first = begin - begin % SECTOR_BYTES
    sectors = [(max(begin, at), min(end, at + SECTOR_BYTES)) for at in range(first, end, SECTOR_BYTES)]
    chance = random.Random(begin)
    changes: list[tuple[str, Callable[[bytearray], None]]] = []

    def put(*parts: tuple[int, int], source: bytes) -> Callable[[bytearray], None]:
        def change(data: bytearray) -> None:
            for start, stop in parts:
                data[start:stop] = source[start:stop]

        return change

    for sector in sectors:
        others = [other for other in sectors if other != sector]
        changes += [(f"without sector {sector}", put(sector, source=old))]
        changes += [(f"with zeros in sector {sector}", put(sector, source=bytes(end)))]
        changes += [(f"with sector {sector} alone", put(*others, source=old))]
        some = [other for other in sectors if chance.random() < 0.5]
        changes += [(f"without sectors {some}", put(*some, source=old))]
    ends = range(begin, end) if every_byte else [stop for _, stop in sectors[:-1]]
    changes += [(f"cut at {at}", put((at, end), source=old)) for at in ends]
    for what, change in changes:
        disk = whole.copy()
        change(disk.contents[write.inode].data)
        yield disk, f"{why}, the last {what}"
