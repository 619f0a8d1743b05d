"""Keeps a run elsewhere, on any file system that pyarrow knows (s3://, gs://, file://), and brings it back.

    URI/STORE-UUID/ { objects/SHA256, moments/DATA-LSN-CONTROL-LSN.json }

An object is a file of the run, named by its contents, and is sent once: sealed segments, checkpoints, the base model. A
moment is the manifest of a snapshot (buffers/snapshots.py) and is written last. store/archived.json, in the run, says
how far the newest moment goes: what comes after it is what the loss of this disk would lose. Every byte that comes back
is compared with its name. Not covered: an archive that another process empties while it is written.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

from pyarrow import fs

from buffers import branching, snapshots
from buffers.inspection import OnProgress, ignore
from buffers.log.files import write_durably
from buffers.log.identity import read_identity
from buffers.snapshots import Snapshot
from configs.documents import STRICT, Count, DocumentError, Lsn, Number, read
from contracts.errors import RunFolderError, UserError

RECORD = "archived.json"
_CHUNK_BYTES = 4 << 20
_MOMENT = re.compile(r"([0-9a-f]{16})-([0-9a-f]{16})\.json")
_OURS = re.compile(r"\.(archive-([0-9]+)-[0-9a-f]{8})\.sending")  # says that a snapshot is ours: as long as it is sent
_STORE = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class Archived:
    """How far a run is kept elsewhere."""

    __pydantic_config__ = STRICT
    uri: str
    data_lsn: Lsn
    control_lsn: Lsn
    wall_time: Number
    num_sent: Count = 0  # objects of this call; others were there
    num_bytes: Count = 0


def archive(run_folder: Path, uri: str, *, on_progress: OnProgress = ignore) -> Archived:
    """Send what the archive lacks of a run, live or not. Raises UserError where the URI cannot be written."""
    place = _Place.open(uri, read_identity(run_folder / "store"))
    _clear(run_folder)
    name = f"archive-{os.getpid()}-{secrets.token_hex(4)}"
    mark = run_folder / "snapshots" / f".{name}.sending"
    mark.parent.mkdir(exist_ok=True)
    write_durably(mark, b"")
    try:
        path = snapshots.create(run_folder, name)
        described = snapshots.complete(path)
        with _told(uri):
            sent = _send(place, path, described, on_progress)
            place.write_moment(described)
    finally:
        _forget(mark, name)
    done = Archived(
        uri=uri,
        data_lsn=described.data_lsn,
        control_lsn=described.control_lsn,
        wall_time=time.time(),
        num_sent=len(sent),
        num_bytes=sum(sent),
    )
    write_durably(run_folder / "store" / RECORD, json.dumps(asdict(done)).encode())
    return done


def _clear(run_folder: Path) -> None:
    """Remove the snapshots of archivings that were killed: those that a mark of theirs names, and no others."""
    for mark, pid in find_senders(run_folder):
        if pid == os.getpid() or not Path(f"/proc/{pid}").exists():
            _forget(mark, mark.name[1:].removesuffix(".sending"))


def find_senders(run_folder: Path) -> list[tuple[Path, int]]:
    """Marks of archivings that are under way or were killed, and the process that was at it."""
    marks = sorted((run_folder / "snapshots").glob(".archive-*.sending"))
    return [(mark, int(match[2])) for mark in marks if (match := _OURS.fullmatch(mark.name))]


def _forget(mark: Path, name: str) -> None:
    if (mark.parent / name).exists():
        snapshots.delete(mark.parent.parent, name)
    mark.unlink(missing_ok=True)


def read_archived(store: Path) -> Archived | None:
    """How far the store in `store` is archived; None where it never was."""
    try:
        return read(store / RECORD, Archived)
    except FileNotFoundError:
        return None
    except DocumentError as error:
        raise RunFolderError(
            f"{store / RECORD}", f"it does not read: {error}", "remove it and archive again"
        ) from error


def restore(uri: str, to: Path, *, uuid: UUID | None = None, on_progress: OnProgress = ignore) -> UUID:
    """A new run at `to` from the newest moment in the archive; its store's uuid. `uuid`: of the store to take.

    Raises UserError where there is no such archive, RunFolderError where what it holds is damaged.
    """
    branching.check_place(to)
    with _told(uri):
        place = _Place.open(uri, uuid or _only_store(uri))
        described = place.read_moment()
    draft = to.with_name(f".{to.name}.{os.getpid()}.archive")
    shutil.rmtree(draft, ignore_errors=True)
    try:
        for done, (member, digest) in enumerate(described.files.items()):
            with _told(uri):
                place.fetch(digest, draft, member)
            on_progress(done + 1, len(described.files))
        snapshots.write_manifest(draft, described)
        return branching.restore(draft, to, share=True)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _send(place: _Place, path: Path, described: Snapshot, on_progress: OnProgress) -> list[int]:
    """Sizes of the objects that were sent."""
    there = place.list_objects()
    sent: list[int] = []
    for done, (member, digest) in enumerate(described.files.items()):
        size = described.links.get(member, (path / member).stat().st_size)
        if there.get(digest) != size:
            place.send(path / member, digest, num_bytes=size)
            sent.append(size)
            there[digest] = size
        on_progress(done + 1, len(described.files))
    return sent


class _Place:
    """One store's folder in an archive."""

    def __init__(self, files: fs.FileSystem, root: str) -> None:
        self._files, self._root = files, root

    @classmethod
    def open(cls, uri: str, uuid: UUID) -> _Place:
        files, root = _connect(uri)
        return cls(files, f"{root.rstrip('/')}/{uuid}")

    def list_objects(self) -> dict[str, int]:
        """Digest → size in bytes."""
        return {info.base_name: info.size for info in self._list("objects") if _DIGEST.fullmatch(info.base_name)}

    def send(self, path: Path, digest: str, *, num_bytes: int) -> None:
        """The first bytes of a file. Under another name first: an object that has its name is whole."""
        with path.open("rb") as file, self._draft(f"objects/{digest}") as stream:
            for chunk in snapshots.read_chunks(file, num_bytes):
                stream.write(chunk)

    def write_moment(self, described: Snapshot) -> None:
        text = json.dumps(snapshots.to_json(described)).encode()
        self._write(f"moments/{described.data_lsn:016x}-{described.control_lsn:016x}.json", text)

    def read_moment(self) -> Snapshot:
        """The newest one."""
        moments = [info for info in self._list("moments") if _MOMENT.fullmatch(info.base_name)]
        if not moments:
            raise UserError(f"the archive {self._root}", "it has no whole moment", "archive a run to it first")
        newest = max(moments, key=lambda info: info.base_name)
        with self._files.open_input_stream(newest.path) as stream:
            data = stream.read()
        return snapshots.from_json(data, place=newest.path)

    def fetch(self, digest: str, folder: Path, member: str) -> None:
        """An object as the file `member` of `folder`. Raises RunFolderError where it is not what its name says."""
        snapshots.check_member(folder, member)
        target = folder / member
        target.parent.mkdir(parents=True, exist_ok=True)
        found = hashlib.sha256()
        with self._files.open_input_stream(f"{self._root}/objects/{digest}") as stream, target.open("wb") as file:
            while chunk := stream.read(_CHUNK_BYTES):
                file.write(chunk)
                found.update(chunk)
        if found.hexdigest() != digest:
            raise RunFolderError(
                f"the archive {self._root}", f"the object of {member} was changed", "restore from another copy"
            )

    def _list(self, folder: str) -> list[fs.FileInfo]:
        found: list[fs.FileInfo] = self._files.get_file_info(
            fs.FileSelector(f"{self._root}/{folder}", allow_not_found=True)
        )
        return [info for info in found if info.is_file]

    def _write(self, name: str, data: bytes) -> None:
        with self._draft(name) as stream:
            stream.write(data)

    @contextmanager
    def _draft(self, name: str) -> Iterator[Any]:
        folder, _, base = f"{self._root}/{name}".rpartition("/")
        self._files.create_dir(folder, recursive=True)
        draft = f"{folder}/.{base}.{os.getpid()}"
        with self._files.open_output_stream(draft) as stream:
            yield stream
        self._files.move(draft, f"{folder}/{base}")


def _connect(uri: str) -> tuple[fs.FileSystem, str]:
    """A URI, or a folder of this machine."""
    try:
        files, root = fs.FileSystem.from_uri(uri if "://" in uri else str(Path(uri).absolute()))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f"the archive {uri}", f"it is no place that can be used: {error}", "file:///folder, s3://bucket/prefix, …"
        ) from error
    return files, root


def _only_store(uri: str) -> UUID:
    files, root = _connect(uri)
    found = files.get_file_info(fs.FileSelector(root, allow_not_found=True))
    names = sorted(info.base_name for info in found if not info.is_file and _STORE.fullmatch(info.base_name))
    if len(names) != 1:
        raise UserError(
            f"restore from {uri}",
            f"it has {len(names)} stores: {', '.join(names)}" if names else "there is no archive",
            "name one: --store UUID" if names else "name the URI that was archived to",
        )
    return UUID(names[0])


@contextmanager
def _told(uri: str) -> Iterator[None]:
    """What the other file system refuses, in words of ours."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"the archive {uri}", f"it does not answer as it should: {error}", "see that it is there and writable"
        ) from error
