"""Who reads a log from outside the owner: as long as somebody does, what he began with is not trimmed.

store/readers/gate          held shared while a reader says where it stands, exclusively while the log is trimmed
store/readers/NAME.lease    an LSN; locked for as long as the reader lives: a dead one pins nothing

A lease's name is drawn: the same process id is there once in each container that shares the folder.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from buffers.log.segments import list_starts

_FOLDER = "readers"
_NOT_OURS = frozenset({errno.ENOENT, errno.EACCES, errno.EPERM, errno.EROFS})  # never trimmed, or not to be marked


@contextmanager
def reading(store: Path) -> Iterator[int]:
    """Inside the block nothing of the data log that is there now goes; its first LSN."""
    try:
        gate = os.open(store / _FOLDER / "gate", os.O_RDWR)
    except OSError as error:
        if error.errno not in _NOT_OURS:
            raise
        yield _first(store)
        return
    path = store / _FOLDER / f"{os.getpid()}-{secrets.token_hex(8)}.lease"
    try:
        fcntl.flock(gate, fcntl.LOCK_SH)
        lease = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
        fcntl.flock(lease, fcntl.LOCK_EX)
        first = _first(store)
        os.pwrite(lease, b"%d" % first, 0)
    finally:
        os.close(gate)
    try:
        yield first
    finally:
        path.unlink(missing_ok=True)
        os.close(lease)


@contextmanager
def trimming(store: Path) -> Iterator[int | None]:
    """Inside the block no reader begins; the lowest LSN that one of them needs, None where there is none."""
    gate = os.open(store / _FOLDER / "gate", os.O_RDWR)
    try:
        fcntl.flock(gate, fcntl.LOCK_EX)
        yield min(_find_pins(store), default=None)
    finally:
        os.close(gate)


def make_gate(store: Path) -> None:
    """Of a store that may be trimmed. Its owner's first step; made again it stays as it is."""
    (store / _FOLDER).mkdir(exist_ok=True)
    (store / _FOLDER / "gate").touch()


def _first(store: Path) -> int:
    folder = store / "data"
    return min(list_starts(folder), default=0) if folder.is_dir() else 0


def _find_pins(store: Path) -> Iterator[int]:
    for path in (store / _FOLDER).glob("*.lease"):
        try:
            lease = os.open(path, os.O_RDWR)
        except FileNotFoundError:
            continue  # it ended just now
        try:
            fcntl.flock(lease, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield int(os.pread(lease, 32, 0) or b"0")
        else:
            path.unlink(missing_ok=True)  # its reader is dead
        finally:
            os.close(lease)
