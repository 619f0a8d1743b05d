"""Whose store it is: its identity, and the claim of the one process that may write it.

    store.json   uuid and format version; made once, by whoever creates the store
    lock         flock held for life; says who holds it
    epoch        raised durably by each claim; an owner that finds a larger one there is fenced

Local file systems only: flock over a network keeps no promise.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import signal
import socket
from dataclasses import asdict, dataclass, field
from pathlib import Path
from uuid import UUID, uuid4

from buffers.log.files import in_store_errors, make_folder, write_all, write_durably
from buffers.log.frames import FORMAT_VERSION
from buffers.log.watermark import read_boot_id
from configs.documents import STRICT, DocumentError, parse, read
from contracts.errors import FormatError, StoreBusyError, StoreError, StoreIdentityError

BEGUN = "begun"  # a file in the store's folder: both logs were made, so that a missing one is a loss
_EPOCHS = range(1 << 32)  # a frame has 4 bytes for it
_EXIT_WAIT_S = 10.0  # a killed process goes at once, unless the kernel is stuck in its input or output


def create_store(folder: Path, *, uuid: UUID | None = None) -> UUID:
    """Make `folder` a store with a new identity, or this one. StoreIdentityError if it is one already."""
    uuid = uuid or uuid4()
    text = json.dumps({"format_version": FORMAT_VERSION, "uuid": str(uuid)}) + "\n"
    try:
        with in_store_errors(f"{folder} cannot be made a store"):
            make_folder(folder)
            write_durably(folder / "store.json", text.encode(), replace=False)
    except FileExistsError as error:
        raise StoreIdentityError(f"{folder} is a store already: {read_identity(folder)}") from error
    return uuid


def read_identity(folder: Path) -> UUID:
    """The store's uuid. StoreIdentityError where there is no store, FormatError on an unknown version."""
    path = folder / "store.json"
    try:
        identity = read(path, _Identity)
    except FileNotFoundError as error:
        raise StoreIdentityError(f"{folder} holds no store: {path.name} is missing") from error
    except DocumentError as error:
        raise StoreIdentityError(f"{path} does not name a store: {error}") from error
    version = identity.format_version
    if version != FORMAT_VERSION:
        raise FormatError(f"{path}: format version {version}; this code reads {FORMAT_VERSION}: use a newer Ratchet")
    return identity.uuid


@dataclass(frozen=True)
class _Identity:
    """What store.json says."""

    __pydantic_config__ = STRICT
    format_version: int
    uuid: UUID


@dataclass(frozen=True)
class Holder:
    """Who holds a store: enough to know the very process again."""

    __pydantic_config__ = STRICT
    pid: int
    start_time: int  # clock ticks after boot, as in /proc/PID/stat
    boot_id: str
    host: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


@dataclass
class Claim:
    """The right to write a store, for as long as the process lives or until `release`."""

    epoch: int
    uuid: UUID
    _folder: Path = field(repr=False)
    _fd: int = field(repr=False)

    def still_owner(self) -> bool:
        """Whether nobody has claimed the store since: the epoch on disk is still ours."""
        return self._fd >= 0 and _read_epoch(self._folder) == self.epoch

    def release(self) -> None:
        """Let go of the lock. A second call does nothing."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def claim(folder: Path, *, uuid: UUID, take_over: bool = False) -> Claim:
    """Become the store's owner, under a new epoch that is durable before this returns.

    With `take_over`, a process that holds the store is killed: exactly the recorded one, known by pid, start time and
    boot id, and no other.

    Raises StoreIdentityError (no store, or another than `uuid`), StoreBusyError (says who holds it), FormatError.
    """
    found = read_identity(folder)
    if found != uuid:
        raise StoreIdentityError(f"{folder} holds store {found}, not {uuid}")
    with in_store_errors(f"{folder} cannot be claimed"):
        return _claim(folder, uuid=uuid, take_over=take_over)


def _claim(folder: Path, *, uuid: UUID, take_over: bool) -> Claim:
    fd = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        if not _lock(fd):
            holder = _read_holder(fd)
            if not take_over:
                raise StoreBusyError(f"{folder} is held by {holder or 'a process that has not said its name yet'}")
            _kill(holder, folder=folder)
            if not _lock(fd):
                raise StoreBusyError(f"{folder}: {holder} is gone, but a child of it, or another owner, holds the lock")
        _write_holder(fd)
        epoch = _read_epoch(folder) + 1
        if epoch not in _EPOCHS:
            raise StoreIdentityError(f"{folder / 'epoch'} holds the last epoch there is")
        write_epoch(folder, epoch)
    except BaseException:
        os.close(fd)
        raise
    return Claim(epoch, uuid, folder, fd)


def read_start_time(pid: int) -> int | None:
    """When the process started, in clock ticks after boot; None if there is none of this number."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return int(stat.rpartition(")")[2].split()[19])  # the name before ")" may hold anything, spaces too


def _lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise StoreError(f"this file system has no flock ({error.strerror}): put the store on a local one") from error
    return True


def _write_holder(fd: int) -> None:
    start_time = read_start_time(os.getpid())
    assert start_time is not None
    holder = Holder(os.getpid(), start_time, str(read_boot_id()), socket.gethostname())
    os.ftruncate(fd, 0)
    write_all(fd, json.dumps(asdict(holder)).encode(), offset=0)


def _read_holder(fd: int) -> Holder | None:
    """Whom the lock file names; None while the holder is still writing it."""
    try:
        return parse(os.pread(fd, 4096, 0), Holder)
    except DocumentError:
        return None


def _kill(holder: Holder | None, *, folder: Path) -> None:
    """End the recorded process and wait until it is gone. StoreBusyError if it cannot be known for certain."""
    refusal = f"{folder} is held, but not for certain by {holder}: nothing was killed; end its owner and try again"
    if holder is None or holder.boot_id != str(read_boot_id()) or holder.pid == os.getpid():
        raise StoreBusyError(refusal)
    try:
        process = os.pidfd_open(holder.pid)
    except ProcessLookupError as error:
        raise StoreBusyError(refusal) from error
    try:
        # The pidfd is open: if the start time is right now, the signal cannot reach a later process of this number.
        if read_start_time(holder.pid) != holder.start_time:
            raise StoreBusyError(refusal)
        signal.pidfd_send_signal(process, signal.SIGKILL)
        exited = select.poll()
        exited.register(process, select.POLLIN)
        if not exited.poll(_EXIT_WAIT_S * 1000):
            raise StoreBusyError(f"{folder}: {holder} was killed but has not gone within {_EXIT_WAIT_S:.0f} s")
    except ProcessLookupError:
        return  # it went by itself just now
    finally:
        os.close(process)


def write_epoch(folder: Path, epoch: int) -> None:
    """Durably: claims from here on get larger ones."""
    write_durably(folder / "epoch", f"{epoch}\n".encode())


def _read_epoch(folder: Path) -> int:
    try:
        fd = os.open(f"{folder}/epoch", os.O_RDONLY)  # asked before each acknowledgement: no file object for it
    except FileNotFoundError:
        return 0
    try:
        epoch = int(os.read(fd, 64))
    except (ValueError, IsADirectoryError) as error:
        raise StoreIdentityError(f"{folder / 'epoch'} does not hold a number") from error
    finally:
        os.close(fd)
    if epoch not in _EPOCHS:
        raise StoreIdentityError(f"{folder / 'epoch'} holds {epoch}, which is no epoch")
    return epoch
