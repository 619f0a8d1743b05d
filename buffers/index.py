"""The LMDB index over the data log: a convenience that can be thrown away and is rebuilt from the log.

    episodes    episode id → LSN                         tasks      task id → leases (sorted duplicates)
    leases      lease → task, disposition, member LSNs   producers  name → epoch, newest seq, its LSN
    meta        store uuid, format, how far of each log it holds

Only the store's owner writes it, off the hot path, and never past the durable watermark. LMDB has no page checksums and
this one is not synced: an index that was in use when the machine lost power, is damaged, foreign, or ahead of the log
is left behind and a new one is built beside it and swapped in by rename.
"""

from __future__ import annotations

import shutil
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from uuid import UUID

import lmdb
import msgpack

from buffers.groups import Group, Producer
from buffers.log.watermark import read_boot_id

FORMAT = 1
_MAX_KEY_BYTES = 400  # LMDB's limit is 511
_IN_USE = "in-use"  # holds the boot id while an owner writes
_LSN = struct.Struct(">Q")
_TABLES = ("episodes", "leases", "tasks", "producers", "meta")


@dataclass(frozen=True)
class LeaseEntry:
    """What the index says of a lease. `disposition` is None until it ends."""

    task_id: str
    disposition: str | None
    lsns: dict[int, int]  # member → LSN of its episode


@dataclass(frozen=True)
class Changes:
    """One batch of updates, and how far of each log the index holds after it (LSNs below are in)."""

    episodes: Sequence[tuple[str, int]]  # (id, LSN)
    groups: Sequence[tuple[int, str, bytes]]  # see describe_group
    producers: Sequence[tuple[str, bytes]]  # see describe_producer
    data_lsn: int
    control_lsn: int


def describe_group(group: Group) -> tuple[int, str, bytes]:
    """(lease, task id, value of the lease in the index)."""
    disposition = group.disposition.value if group.disposition else None
    value = msgpack.packb([group.task.task_id, disposition, sorted(group.lsns.items())])
    return group.lease, group.task.task_id, value


def describe_producer(name: str, producer: Producer) -> tuple[str, bytes]:
    """(name, value of the producer in the index)."""
    newest_lsn = producer.lsns.get(producer.newest, -1)
    return name, msgpack.packb([producer.epoch, producer.newest, newest_lsn])


class Index:
    """One open per process. `data_lsn` and `control_lsn`: what lies below is in the index."""

    def __init__(self, folder: Path, *, uuid: UUID, map_bytes: int, final: Path) -> None:
        self._folder, self._final = folder, final
        folder.mkdir(parents=True, exist_ok=True)
        self._env = lmdb.open(
            str(folder), map_size=map_bytes, max_dbs=len(_TABLES), max_readers=512,
            sync=False, writemap=False, readahead=False, meminit=False,
        )  # fmt: skip
        try:
            self._tables = {name: self._env.open_db(name.encode(), dupsort=name == "tasks") for name in _TABLES}
            self.uuid = uuid
            self.data_lsn, self.control_lsn = self._read_progress()
            (folder / _IN_USE).write_text(str(read_boot_id()))
        except BaseException:
            self._env.close()
            raise

    @classmethod
    def open(cls, folder: Path, *, uuid: UUID, map_bytes: int, data_end: int, control_end: int) -> Index:
        """The index in `folder` if it can be trusted and is not ahead of the logs' ends, else an empty one.

        An empty one stands in `folder` only after `publish`.
        """
        if _survived(folder):
            try:
                index = cls(folder, uuid=uuid, map_bytes=map_bytes, final=folder)
            except (lmdb.Error, OSError, ValueError, TypeError):
                pass  # damaged or foreign: what it held is in the log
            else:
                if index.data_lsn <= data_end and index.control_lsn <= control_end:
                    return index
                index._env.close()
        fresh = folder.with_name(folder.name + ".new")
        shutil.rmtree(fresh, ignore_errors=True)
        return cls(fresh, uuid=uuid, map_bytes=map_bytes, final=folder)

    def publish(self) -> None:
        """Put a rebuilt index in its place."""
        if self._folder == self._final:
            return
        old = self._final.with_name(self._final.name + ".old")
        shutil.rmtree(old, ignore_errors=True)
        if self._final.exists():
            self._final.rename(old)
        self._folder.rename(self._final)
        self._folder = self._final
        shutil.rmtree(old, ignore_errors=True)

    # ------------------------------------------------------------------------------------------ writing

    def write(self, changes: Changes) -> None:
        """Apply one batch, whole or not at all. Writing the same again changes nothing."""
        tables = self._tables
        with self._env.begin(write=True) as transaction:
            for episode_id, lsn in changes.episodes:
                transaction.put(_key(episode_id), _LSN.pack(lsn), db=tables["episodes"])
            for lease, task_id, value in changes.groups:
                transaction.put(_LSN.pack(lease), value, db=tables["leases"])
                transaction.put(_key(task_id), _LSN.pack(lease), db=tables["tasks"])
            for name, value in changes.producers:
                transaction.put(_key(name), value, db=tables["producers"])
            progress = msgpack.packb([FORMAT, self.uuid.bytes, changes.data_lsn, changes.control_lsn])
            transaction.put(b"progress", progress, db=tables["meta"])
        self.data_lsn, self.control_lsn = changes.data_lsn, changes.control_lsn

    def close(self, *, trusted: bool = True) -> None:
        """After a clean close the index is trusted even if the machine loses power; else it is built again."""
        if trusted:
            self._env.sync(True)
        self._env.close()
        if trusted:
            (self._folder / _IN_USE).unlink(missing_ok=True)
        else:
            (self._folder / _IN_USE).write_text("not to be trusted")

    # ------------------------------------------------------------------------------------------ reading

    def find_episode(self, episode_id: str) -> int | None:
        """LSN of an episode."""
        with self._env.begin() as transaction:
            value = transaction.get(_key(episode_id), db=self._tables["episodes"])
        return None if value is None else int(_LSN.unpack(value)[0])

    def find_lease(self, lease: int) -> LeaseEntry | None:
        with self._env.begin() as transaction:
            value = transaction.get(_LSN.pack(lease), db=self._tables["leases"])
        if value is None:
            return None
        task_id, disposition, lsns = msgpack.unpackb(value)
        return LeaseEntry(task_id, disposition, dict(lsns))

    def find_task(self, task_id: str) -> list[int]:
        """Leases under which a task was handed out, oldest first."""
        with self._env.begin() as transaction, transaction.cursor(db=self._tables["tasks"]) as cursor:
            if not cursor.set_key(_key(task_id)):
                return []
            return [int(_LSN.unpack(value)[0]) for value in cursor.iternext_dup()]

    def find_producer(self, name: str) -> tuple[int, int, int] | None:
        """(epoch, newest sequence number, its LSN)."""
        with self._env.begin() as transaction:
            value = transaction.get(_key(name), db=self._tables["producers"])
        if value is None:
            return None
        epoch, seq, lsn = msgpack.unpackb(value)
        return epoch, seq, lsn

    def read_all(self) -> dict[str, list[tuple[bytes, bytes]]]:
        """Every table's pairs in order: two indexes of the same log are equal."""
        with self._env.begin() as transaction:
            return {
                name: [(bytes(key), bytes(value)) for key, value in transaction.cursor(db=table)]
                for name, table in self._tables.items()
            }

    def _read_progress(self) -> tuple[int, int]:
        """Raises ValueError where the index is of another store or format."""
        with self._env.begin() as transaction:
            value = transaction.get(b"progress", db=self._tables["meta"])
        if value is None:
            return 0, 0
        format_, uuid, data_lsn, control_lsn = msgpack.unpackb(value)
        if format_ != FORMAT or uuid != self.uuid.bytes:
            raise ValueError(f"index of store {uuid.hex()}, format {format_}")
        return int(data_lsn), int(control_lsn)


def _key(text: str) -> bytes:
    """A key for any text: itself, or its hash where LMDB would refuse it."""
    key = text.encode()
    return key if 0 < len(key) <= _MAX_KEY_BYTES else blake2b(key, digest_size=32).digest()


def _survived(folder: Path) -> bool:
    """Whether the pages in `folder` are those that its owner wrote: closed cleanly, or cached since by this kernel.

    A file shorter than its tree would kill the process on first touch, so the size is compared before any read.
    """
    data = folder / "data.mdb"
    if not data.is_file():
        return False
    try:
        in_use = (folder / _IN_USE).read_text()
    except FileNotFoundError:
        in_use = ""
    if in_use not in ("", str(read_boot_id())):
        return False
    try:
        env = lmdb.open(str(folder), readonly=True, lock=False, max_dbs=len(_TABLES))
    except lmdb.Error:
        return False
    try:
        pages = env.info()["last_pgno"] + 1
        return bool(data.stat().st_size >= pages * env.stat()["psize"])
    finally:
        env.close()
