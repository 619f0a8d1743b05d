"""Watches the file operations of this process below one folder, in order, and may let one fail or be the last.

The seam is the `os` module itself: what the log does to files, it does through these functions. Not seen: files that
are opened as Python file objects (copies of a snapshot, LMDB); kill rounds and `FailPoint` cover those from outside.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Name = Literal[
    "create", "make_folder", "write", "allocate", "truncate", "sync", "sync_folder", "link", "rename", "unlink"
]
FULL, BROKEN = errno.ENOSPC, errno.EIO
TAKES_SPACE: tuple[Name, ...] = ("create", "make_folder", "write", "allocate", "link", "rename")
SYNCS: tuple[Name, ...] = ("sync", "sync_folder")


@dataclass(frozen=True)
class Operation:
    """One change of the files. `inode` is the file's own, `path` its name, `target` the new name of link and rename."""

    name: Name
    path: Path
    inode: int = 0
    target: Path | None = None
    offset: int = 0
    data: bytes = b""
    size: int = 0  # of allocate and truncate


Observer = Callable[[Operation], None]


def _ignore(_: Operation) -> None:
    pass


class _Disk:
    """The replacements of the `os` functions; `before` may raise instead of letting an operation happen."""

    def __init__(self, folder: Path, *, before: Observer, after: Observer) -> None:
        self.folder, self.before, self.after = folder.absolute(), before, after
        self.real: dict[str, Any] = {}

    def is_ours(self, path: Any) -> bool:
        return isinstance(path, str | os.PathLike) and Path.absolute(Path(path)).is_relative_to(self.folder)

    def perform(self, operation: Operation, act: Callable[[], Any]) -> Any:
        self.before(operation)
        answer = act()
        self.after(operation)
        return answer

    def open(self, path: Any, flags: int, mode: int = 0o777, **options: Any) -> int:
        def act() -> int:
            fd: int = self.real["open"](path, flags, mode, **options)
            return fd

        if not self.is_ours(path):
            return act()
        place = Path.absolute(Path(path))
        exists = os.path.lexists(place)
        if flags & os.O_CREAT and not exists:
            self.before(Operation("create", place))
            fd = act()
            self.after(Operation("create", place, os.fstat(fd).st_ino))
        else:
            fd = act()
            if flags & os.O_TRUNC:
                self.after(Operation("truncate", place, os.fstat(fd).st_ino))
        return fd

    def _on(self, name: Name, fd: int, call: str, *arguments: Any, **about: Any) -> Any:
        def act() -> Any:
            return self.real[call](fd, *arguments)

        path = Path(f"/proc/self/fd/{fd}").readlink()  # of a file that was linked: the name it was made with
        if not self.is_ours(path):
            return act()
        return self.perform(Operation(name, path, os.fstat(fd).st_ino, **about), act)

    def pwrite(self, fd: int, data: Any, offset: int) -> int:
        count: int = self._on("write", fd, "pwrite", data, offset, data=bytes(data), offset=offset)
        return count

    def pwritev(self, fd: int, buffers: Sequence[Any], offset: int, flags: int = 0) -> int:
        data = b"".join(bytes(buffer) for buffer in buffers)
        count: int = self._on("write", fd, "pwritev", buffers, offset, flags, data=data, offset=offset)
        return count

    def posix_fallocate(self, fd: int, offset: int, size: int) -> None:
        self._on("allocate", fd, "posix_fallocate", offset, size, size=offset + size)

    def ftruncate(self, fd: int, size: int) -> None:
        self._on("truncate", fd, "ftruncate", size, size=size)

    def fsync(self, fd: int) -> None:
        is_folder = stat.S_ISDIR(os.fstat(fd).st_mode)
        self._on("sync_folder" if is_folder else "sync", fd, "fsync")

    def fdatasync(self, fd: int) -> None:
        self._on("sync", fd, "fdatasync")

    def _name(self, name: Name, call: str, path: Any, *target: Any, **options: Any) -> None:
        def act() -> None:
            self.real[call](path, *target, **options)

        if not self.is_ours(target[0] if target else path):
            return act()
        place = Path.absolute(Path(path))
        inode = os.lstat(place).st_ino if os.path.lexists(place) else 0
        self.perform(Operation(name, place, inode, Path.absolute(Path(target[0])) if target else None), act)
        return None

    def link(self, source: Any, target: Any, **options: Any) -> None:
        self._name("link", "link", source, target, **options)

    def rename(self, source: Any, target: Any, **options: Any) -> None:
        self._name("rename", "rename", source, target, **options)

    def replace(self, source: Any, target: Any, **options: Any) -> None:
        self._name("rename", "replace", source, target, **options)

    def unlink(self, path: Any, **options: Any) -> None:
        if self.is_ours(path) and not os.path.lexists(path):
            return self.real["unlink"](path, **options)  # type: ignore[no-any-return]
        return self._name("unlink", "unlink", path, **options)

    def mkdir(self, path: Any, mode: int = 0o777, **options: Any) -> None:
        if os.path.lexists(path):
            return self.real["mkdir"](path, mode, **options)  # type: ignore[no-any-return]
        return self._name("make_folder", "mkdir", path, **options)


_SEEN = (
    "open", "pwrite", "pwritev", "posix_fallocate", "ftruncate", "fsync", "fdatasync",
    "link", "rename", "replace", "unlink", "mkdir",
)  # fmt: skip


@contextmanager
def watched(folder: Path, *, before: Observer = _ignore, after: Observer = _ignore) -> Iterator[None]:
    """Tell of every change of files below `folder`; what `before` raises happens instead of the change."""
    disk = _Disk(folder, before=before, after=after)
    disk.real = {name: getattr(os, name) for name in _SEEN}
    try:
        for name in _SEEN:
            setattr(os, name, getattr(disk, name))
        yield
    finally:
        for name, function in disk.real.items():
            setattr(os, name, function)


class Fault:
    """Raises `number` at the `nth` operation (from 0) of those named; with `lasting`, at all from there on.

    Counts files whose path contains `where`, and not those called `spare`.
    """

    def __init__(
        self,
        number: int,
        names: Sequence[Name],
        *,
        nth: int = 0,
        lasting: bool = False,
        where: str = "",
        spare: str = "",
    ) -> None:
        self._number, self._names, self._nth, self._lasting = number, names, nth, lasting
        self._where, self._spare = where, spare
        self.count = 0
        self.hit: Operation | None = None  # the first one that failed

    def __call__(self, operation: Operation) -> None:
        path = operation.path
        if operation.name not in self._names or self._where not in str(path) or path.name == self._spare:
            return
        self.count += 1
        if self.count == self._nth + 1 or (self._lasting and self.count > self._nth):
            self.hit = self.hit or operation
            raise OSError(self._number, os.strerror(self._number), str(path))


@contextmanager
def unsynced() -> Iterator[None]:
    """Syncs do nothing: for checks of states that stand for a disk, where only time would be lost."""
    fsync, fdatasync = os.fsync, os.fdatasync
    try:
        os.fsync = os.fdatasync = lambda fd: None
        yield
    finally:
        os.fsync, os.fdatasync = fsync, fdatasync
