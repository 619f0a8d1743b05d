"""The LMDB index: where the fold's history lies, and a way to find things; thrown away and rebuilt at any time.

    tasks      task id → leases (sorted duplicates)
    rows       block → LSNs of the episodes that came with a reward, in log order (buffers/replaying.py)
    groups, producers, versions, version_lsns, batch_lsns, successes, priorities, late, settled   the fold's shelves
    meta       store uuid, format, how far of each log it holds, and the rest of the fold at that very point

One transaction is one cut of both logs: whoever opens the index has the fold as it was there, and folds on from there.
Only the store's owner writes it, off the hot path, and never past the durable watermark. Transactions are synced, so it
outlives a power loss; LMDB has no page checksums, so what the fold is made from carries its own. An index that is
damaged, foreign, or ahead of the log is left behind and a new one is built beside it and swapped in by rename.
"""

from __future__ import annotations

import shutil
import struct
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from threading import Lock
from typing import Any
from uuid import UUID

import google_crc32c
import lmdb
import msgpack

from buffers.codec import encode
from buffers.log.files import sync_folder, sync_tree
from contracts.errors import StoreError, StoreStoppedError

FORMAT = 5
SHELVES = (
    "groups", "producers", "versions", "version_lsns", "batch_lsns", "successes", "priorities", "late", "settled",
)  # fmt: skip
_MAX_KEY_BYTES = 400  # LMDB's limit is 511
_UNTRUSTED = "untrusted"  # a file that says: build it again
_LSN = struct.Struct(">Q")
_CRC = struct.Struct("<I")
_TABLES = ("tasks", "rows", *SHELVES, "meta")
ROWS_A_BLOCK = 512
_ROOM_BYTES = 16 << 20  # for what a few changes copy

Plain = Any  # what msgpack takes; on the way in, records too
_OWNED: dict[Path, Index] = {}  # those that this process owns: LMDB opens a folder once in a process
_READ: dict[Path, tuple[int, lmdb.Environment, Mapping[str, Any]]] = {}  # those that it reads; inode, tables by name
_LOOKING = Lock()  # guards both


class IndexDamagedError(Exception):
    """A value does not pass its checksum, or is missing."""


@dataclass(frozen=True)
class Changes:
    """One cut: what changed since the one before, and how far of each log the index holds after it."""

    state: Plain  # of the fold, without its shelves
    data_lsn: int  # LSNs below are in
    control_lsn: int
    shelves: Mapping[str, Sequence[tuple[Plain, Plain]]] = field(default_factory=dict)  # name → (key, value)
    tasks: Sequence[tuple[str, int]] = ()  # (id, lease)
    rows: Sequence[int] = ()  # LSNs


class Index:
    """One open per process. `data_lsn` and `control_lsn`: what lies below is in the index."""

    def __init__(self, folder: Path, *, uuid: UUID, map_bytes: int, final: Path) -> None:
        self._folder, self._final = folder, final
        _make_way(final)
        folder.mkdir(parents=True, exist_ok=True)
        self._env = lmdb.open(
            str(folder), map_size=map_bytes, max_dbs=len(_TABLES), max_readers=512,
            metasync=False, writemap=False, readahead=False, meminit=False,
        )  # fmt: skip
        try:
            self._env.reader_check()  # a reader that died pins no page
            self._tables = {name: self._env.open_db(name.encode(), dupsort=name == "tasks") for name in _TABLES}
            self.uuid = uuid
            self.data_lsn, self.control_lsn, self.state, self._num_rows = self._read_progress()
        except BaseException:
            self._env.close()
            raise
        _OWNED[final.absolute()] = self

    @classmethod
    def open(cls, folder: Path, *, uuid: UUID, map_bytes: int) -> Index:
        """The index in `folder` if it can be trusted, else an empty one, which stands in `folder` after `publish`."""
        if _is_whole(folder):
            try:
                return cls(folder, uuid=uuid, map_bytes=map_bytes, final=folder)
            except (lmdb.Error, OSError, ValueError, TypeError, IndexDamagedError):
                pass  # damaged or foreign: what it held is in the log
        fresh = folder.with_name(folder.name + ".new")
        shutil.rmtree(fresh, ignore_errors=True)
        return cls(fresh, uuid=uuid, map_bytes=map_bytes, final=folder)

    @property
    def is_published(self) -> bool:
        """Whether it stands in its place; one that is rebuilt does not yet."""
        return self._folder == self._final

    def publish(self) -> None:
        """Put a rebuilt index in its place."""
        old = self._final.with_name(self._final.name + ".old")
        shutil.rmtree(old, ignore_errors=True)
        if self._final.exists():
            self._final.rename(old)
        self._folder.rename(self._final)
        self._folder = self._final
        shutil.rmtree(old, ignore_errors=True)

    # ------------------------------------------------------------------------------------------ writing

    def write(self, changes: Changes) -> None:
        """Apply one cut, whole or not at all, and make it durable. Writing the same again changes nothing."""
        tables = self._tables
        with self._env.begin(write=True) as transaction:
            for task_id, lease in changes.tasks:
                transaction.put(_shorten(task_id.encode()), _LSN.pack(lease), db=tables["tasks"])
            for name, entries in changes.shelves.items():
                for key, value in entries:
                    transaction.put(_key(key), _seal([key, value]), db=tables[name])
            num_rows = self._write_rows(transaction, changes.rows)
            sizes = {name: transaction.stat(tables[name])["entries"] for name in SHELVES}
            progress = [FORMAT, self.uuid.bytes, changes.data_lsn, changes.control_lsn, changes.state, num_rows, sizes]
            transaction.put(b"progress", _seal(progress), db=tables["meta"])
        self.data_lsn, self.control_lsn = changes.data_lsn, changes.control_lsn
        self._num_rows = num_rows

    def _write_rows(self, transaction: lmdb.Transaction, rows: Sequence[int]) -> int:
        """Append to the blocks of `rows`; how many rows there are then."""
        place, table = self._num_rows, self._tables["rows"]
        while rows:
            number, inside = divmod(place, ROWS_A_BLOCK)
            some, rows = rows[: ROWS_A_BLOCK - inside], rows[ROWS_A_BLOCK - inside :]
            before = bytes(transaction.get(_LSN.pack(number), b"", db=table))
            block = before[: inside * 8] + struct.pack(f"<{len(some)}q", *some)
            transaction.put(_LSN.pack(number), block, db=table)
            place += len(some)
        return place

    def close(self) -> None:
        _OWNED.pop(self._final.absolute(), None)
        self._env.close()

    def copy(self, folder: Path) -> None:
        """Every entry into an empty folder, and nothing else: a copy of pages would have their unused parts too."""
        size = self._env.info()["map_size"]
        with lmdb.open(str(folder), map_size=size, max_dbs=len(_TABLES), max_readers=512, meminit=True) as env:
            tables = {name: env.open_db(name.encode(), dupsort=name == "tasks") for name in _TABLES}
            with self._env.begin() as source, env.begin(write=True) as target:
                for name, table in self._tables.items():
                    for key, value in source.cursor(db=table):
                        target.put(key, value, db=tables[name])

    def distrust(self) -> None:
        """Have the next owner build it again."""
        (self._folder / _UNTRUSTED).touch()

    # ------------------------------------------------------------------------------------------ reading

    def find(self, shelf: str, key: Plain) -> Plain | None:
        """A shelf's value, or None. Raises StoreStoppedError on damage, after which the index is built again."""
        if isinstance(key, int) and not 0 <= key < 1 << 64:
            return None
        try:
            with self._env.begin(db=self._tables[shelf]) as transaction:
                value = transaction.get(_key(key))
            return None if value is None else _unseal(value)[1]
        except (lmdb.Error, IndexDamagedError) as error:
            self.distrust()
            raise StoreStoppedError(
                f"{self._final}: {shelf} {key} is damaged in the index ({error!r}); the next start builds it again"
            ) from error

    def scan(self, shelf: str) -> Iterator[tuple[Plain, Plain]]:
        """All of a shelf's (key, value)."""
        with self._env.begin(db=self._tables[shelf]) as transaction:
            for value in transaction.cursor().iternext(keys=False, values=True):
                key, content = _unseal(value)
                yield key, content

    def find_task(self, task_id: str) -> list[int]:
        """Leases under which a task was handed out, oldest first."""
        with self._env.begin() as transaction, transaction.cursor(db=self._tables["tasks"]) as cursor:
            if not cursor.set_key(_shorten(task_id.encode())):
                return []
            return [int(_LSN.unpack(value)[0]) for value in cursor.iternext_dup()]

    def read_all(self) -> dict[str, list[tuple[bytes, bytes]]]:
        """Every table's pairs in order: two indexes of the same log are equal."""
        with self._env.begin() as transaction:
            return {
                name: [(bytes(key), bytes(value)) for key, value in transaction.cursor(db=table)]
                for name, table in self._tables.items()
            }

    def _read_progress(self) -> tuple[int, int, Plain, int]:
        """Raises ValueError on another store or format, IndexDamagedError where entries are missing."""
        with self._env.begin() as transaction:
            value = transaction.get(b"progress", db=self._tables["meta"])
            if value is None:
                return 0, 0, None, 0
            format_, uuid, *rest = _unseal(value)
            if format_ != FORMAT or uuid != self.uuid.bytes:
                raise ValueError(f"index of store {uuid.hex()}, format {format_}")
            data_lsn, control_lsn, state, num_rows, sizes = rest
            if sizes != {name: transaction.stat(self._tables[name])["entries"] for name in SHELVES}:
                raise IndexDamagedError(f"{self._folder}: entries are missing")
        return int(data_lsn), int(control_lsn), state, int(num_rows)


def forget_payloads(folder: Path, *, uuid: UUID, leases: Collection[int]) -> None:
    """Take the payloads of these tasks out of the index in `folder`, free pages included. One that does not read is
    removed: what it held is in the logs."""
    if not folder.exists():
        return
    fresh, old = (folder.with_name(folder.name + ending) for ending in (".new", ".old"))
    for leftover in (fresh, old):
        shutil.rmtree(leftover, ignore_errors=True)
    fresh.mkdir()
    try:
        if not _is_whole(folder):
            raise IndexDamagedError(f"{folder} is not whole")
        index = Index(folder, uuid=uuid, map_bytes=(folder / "data.mdb").stat().st_size + _ROOM_BYTES, final=folder)
        try:
            groups = [(lease, index.find("groups", lease)) for lease in leases]
            bare = [(lease, [group[0], None, *group[2:]]) for lease, group in groups if group and group[1] is not None]
            index.write(Changes(index.state, index.data_lsn, index.control_lsn, shelves={"groups": bare}))
            index.copy(fresh)
        finally:
            index.close()
    except (lmdb.Error, ValueError, TypeError, IndexDamagedError, StoreStoppedError):
        shutil.rmtree(fresh)
    else:
        sync_tree(fresh)
    folder.rename(old)
    if fresh.exists():
        fresh.rename(folder)
    sync_folder(folder.parent)
    shutil.rmtree(old)


def _open_to_read(folder: Path) -> tuple[lmdb.Environment, Mapping[str, Any]]:
    """The index in `folder` as those who only look share it: LMDB opens a folder once in a process, so it is the
    owner's where the owner is here. Ask again for each transaction: an owner may come.

    Raises StoreError where there is none.
    """
    key = folder.absolute()
    with _LOOKING:
        if (owner := _OWNED.get(key)) is not None:
            return owner._env, owner._tables
        try:
            inode = (folder / "data.mdb").stat().st_ino
            known = _READ.pop(key, None)
            if known is not None and known[0] != inode:  # another was put in its place
                known[1].close()
                known = None
            if known is None:
                if not _is_whole(folder):
                    raise StoreError(f"{folder} does not read: it is not whole; the next owner makes another")
                known = (inode, *_open_tables(folder))
        except (lmdb.Error, OSError) as error:
            raise StoreError(f"{folder}: no index to read: {error}; the store's owner makes one as it opens") from error
        _READ[key] = known
        return known[1:]


def _open_tables(folder: Path) -> tuple[lmdb.Environment, Mapping[str, Any]]:
    env = lmdb.open(str(folder), readonly=True, max_dbs=len(_TABLES), max_readers=512, readahead=False)
    try:
        return env, {name: env.open_db(name.encode(), create=False) for name in _TABLES}
    except lmdb.Error:
        env.close()
        raise


def _make_way(folder: Path) -> None:
    """Close what readers of this process share: an owner comes."""
    with _LOOKING:
        known = _READ.pop(folder.absolute(), None)
        if known is not None:
            known[1].close()


class IndexReader:
    """What an index holds for those who sample, from any process on its machine, in transactions of microseconds."""

    def __init__(self, folder: Path) -> None:
        """Raises StoreError where there is no index."""
        self._folder = folder
        _open_to_read(folder)

    def read_rows(self, *, since: int) -> tuple[list[bytes], int, frozenset[int]]:
        """(blocks from the one that holds row `since` on, how many rows there are, LSNs of late episodes)."""
        env, tables = _open_to_read(self._folder)
        with env.begin() as transaction:
            progress = transaction.get(b"progress", db=tables["meta"])
            num_rows = 0 if progress is None else int(_unseal(progress)[-2])
            numbers = range(since // ROWS_A_BLOCK, -(-num_rows // ROWS_A_BLOCK))
            blocks = [bytes(transaction.get(_LSN.pack(number), b"", db=tables["rows"])) for number in numbers]
            late = frozenset(_LSN.unpack(key)[0] for key, _ in transaction.cursor(db=tables["late"]))
        return blocks, num_rows, late

    def close(self) -> None:
        """Who else reads it in this process opens it again."""
        _make_way(self._folder)


class IndexView:
    """What an index holds of the fold, for those who only look.

    Inside `at_one_cut`, in one transaction, it is that of one point of both logs: `state`, `data_lsn`, `control_lsn`.
    Later it is what the index holds then: of what has ended, the same or newer. Every method raises StoreError where
    the index is not there, of another store or format, or damaged.
    """

    def __init__(self, folder: Path, *, uuid: UUID) -> None:
        self._folder, self._uuid = folder, uuid
        self._transaction: lmdb.Transaction | None = None
        self.state: Plain = None
        self.data_lsn = self.control_lsn = 0

    @contextmanager
    def at_one_cut(self) -> Iterator[None]:
        """For a moment: the owner cannot use the pages again that are read here."""
        env, tables = _open_to_read(self._folder)
        with self._told(), env.begin() as self._transaction:
            try:
                progress = bytes(self._transaction.get(b"progress", b"", db=tables["meta"]))
                format_, found, self.data_lsn, self.control_lsn, self.state, _, sizes = _unseal(progress)
                if format_ != FORMAT or found != self._uuid.bytes:
                    raise StoreError(f"{self._folder} is of store {found.hex()}, format {format_}")
                if sizes != {name: self._transaction.stat(tables[name])["entries"] for name in SHELVES}:
                    raise StoreError(f"{self._folder}: entries are missing")
                yield
            finally:
                self._transaction = None

    def find(self, shelf: str, key: Plain) -> Plain | None:
        """A shelf's value, or None."""
        if isinstance(key, int) and not 0 <= key < 1 << 64:
            return None
        with self._reading(shelf) as (transaction, table):
            value = transaction.get(_key(key), db=table)
            return None if value is None else _unseal(bytes(value))[1]

    def scan(self, shelf: str) -> list[tuple[Plain, Plain]]:
        """All of a shelf's (key, value)."""
        return [tuple(_unseal(value)) for value in self.read_entries(shelf).values()]

    def read_entries(self, shelf: str) -> dict[bytes, bytes]:
        """The same as they lie in the table."""
        with self._reading(shelf) as (transaction, table):
            return {bytes(key): bytes(value) for key, value in transaction.cursor(db=table)}

    @contextmanager
    def _reading(self, shelf: str) -> Iterator[tuple[lmdb.Transaction, Any]]:
        env, tables = _open_to_read(self._folder)
        with self._told():
            if self._transaction is not None:
                yield self._transaction, tables[shelf]
            else:
                with env.begin() as transaction:
                    yield transaction, tables[shelf]

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except (lmdb.Error, IndexDamagedError, ValueError) as error:
            raise StoreError(f"{self._folder} does not read: {error!r}; see: ratchet store repair") from error


def pack_state(state: Plain) -> Plain:
    """The rest of the fold as it is read back."""
    return _unseal(_seal(state))


def pack_entries(entries: Sequence[tuple[Plain, Plain]]) -> dict[bytes, bytes]:
    """A shelf's (key, value) as they lie in its table."""
    return {_key(key): _seal([key, value]) for key, value in entries}


def _seal(content: Plain) -> bytes:
    body: bytes = msgpack.packb(content, default=encode)  # a record as its payload
    return _CRC.pack(google_crc32c.value(body)) + body


def _unseal(value: bytes) -> Plain:
    body = value[_CRC.size :]
    if value[: _CRC.size] != _CRC.pack(google_crc32c.value(body)):
        raise IndexDamagedError("a value fails its checksum")
    return msgpack.unpackb(body, strict_map_key=False)


def _key(key: Plain) -> bytes:
    """Numbers in their order; anything else as msgpack has it."""
    return _LSN.pack(key) if isinstance(key, int) else _shorten(msgpack.packb(key))


def _shorten(key: bytes) -> bytes:
    """The key, or its hash where LMDB would refuse it."""
    return key if 0 < len(key) <= _MAX_KEY_BYTES else blake2b(key, digest_size=32).digest()


def _is_whole(folder: Path) -> bool:
    """Whether there is an index that nobody distrusts, and its file is as long as its tree.

    A shorter one would kill the process on first touch, so the size is compared before any read.
    """
    data = folder / "data.mdb"
    if not data.is_file() or (folder / _UNTRUSTED).exists():
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
