"""Keeps a run at a moment: a folder laid out like a run's own, whose log ends where it ended then.

    runs/RUN/snapshots/NAME/ { config.yaml, manifest.json, store/, checkpoints/, model/, task/, snapshot.json }

Works on a live run from any process, without its owner: logs only grow, so everything below a watermark stays as it is.
What a person may change is copied; the rest is hard-linked and not read, the segment that is being written too: a file
`end` beside it says where the snapshot's log ends, whatever the owner writes behind. `snapshot.json` names every copy
with its sha256, and every link with how many of its bytes are the snapshot's; `verify` checks a link by what it is (a
segment by its frames) and adds its sha256. The folder gets its name last of all, when everything in it is synced: a
half-made one is never taken for a snapshot.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, BinaryIO
from uuid import UUID

from pydantic import Field

from buffers.folding import Milestones, find_milestones
from buffers.index import IndexView
from buffers.log.ending import END, write_end
from buffers.log.files import sync_file, sync_folder, sync_tree, write_durably
from buffers.log.identity import read_identity
from buffers.log.lineage import LINEAGE
from buffers.log.reader import LogReader
from buffers.log.readers import reading
from buffers.log.segments import Gap
from buffers.reading import Records
from configs.documents import STRICT, Count, Digest, DocumentError, Lsn, parse
from contracts.errors import FormatError, RunFolderError, StoreError, UserError
from contracts.records import Checkpoint, Kind

FORMAT = 2
MANIFEST = "snapshot.json"
_FOLDER = "snapshots"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_DRAFT = re.compile(r"\..+\.([0-9]+)\.(?:tmp|gone)")
_LEFT = re.compile(rf"\.{re.escape(MANIFEST)}\.[0-9]+\.tmp")  # by a `verify` that was killed
_CHUNK_BYTES = 1 << 20
_MARKED = (Kind.VERSION, Kind.CHECKPOINT)  # what a snapshot's manifest is made from
_NEEDED = ("config.yaml", "manifest.json", "store/store.json")


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """What `snapshot.json` says."""

    __pydantic_config__ = STRICT
    name: str
    run: str
    created: str  # UTC, ISO 8601
    store_uuid: Annotated[str, Field(pattern=r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")]
    data_lsn: Lsn  # the logs end here
    control_lsn: Lsn
    version: Annotated[int, Field(ge=-1, lt=1 << 63)]  # the newest one in the log, -1 before genesis
    checkpoints: tuple[str, ...]  # folders, relative to the snapshot
    files: dict[str, Digest]  # path relative to the snapshot → sha256; of links once they were verified
    links: dict[str, Count]  # path → how many of its first bytes are the snapshot's

    @property
    def members(self) -> list[str]:
        """All of its files."""
        return sorted(self.files.keys() | self.links.keys())

    @property
    def num_files(self) -> int:
        return len(self.members)


@dataclass(frozen=True)
class _Head:
    __pydantic_config__ = STRICT
    format: Count


def create(run_folder: Path, name: str) -> Path:
    """Snapshot `run_folder` as `name`; the snapshot's folder.

    Raises UserError on a name that is no plain name, or taken; RunFolderError where there is no run.
    """
    check_name(name)
    final = run_folder / _FOLDER / name
    if os.path.lexists(final):
        raise UserError(f"a snapshot named {name}", f"{final} is there already", "choose another name")
    draft = final.with_name(f".{name}.{os.getpid()}.tmp")
    shutil.rmtree(draft, ignore_errors=True)
    try:
        described = take(run_folder, draft, name=name)
        sync_tree(draft, without={draft / member for member in described.links if member.startswith("store/")})
        draft.rename(final)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    sync_folder(final.parent)
    return final


def take(run_folder: Path, draft: Path, *, name: str, wanted: Callable[[Checkpoint], bool] | None = None) -> Snapshot:
    """Fill the new folder `draft`, of which nothing is synced, with a snapshot named `name`.

    `wanted`: the checkpoints that it keeps, of those that are there; None: genesis and the newest. Raises
    RunFolderError where there is no run.
    """
    for needed in _NEEDED:
        if not (run_folder / needed).is_file():
            raise RunFolderError(f"a snapshot of {run_folder}", f"it has no {needed}", "name the folder of a run")
    draft.mkdir(parents=True)
    with reading(run_folder / "store"):
        described = _fill(draft, run_folder, name, wanted)
    (draft / MANIFEST).write_text(_to_text(described))
    return described


def list_all(run_folder: Path) -> list[Snapshot]:
    """The snapshots of a run, oldest first."""
    return sorted((read(path) for path in find_folders(run_folder)), key=lambda one: one.created)


def find_folders(run_folder: Path) -> list[Path]:
    """The folders of a run's snapshots, by name."""
    folder = run_folder / _FOLDER
    paths = sorted(folder.iterdir()) if folder.is_dir() else []
    return [path for path in paths if not path.name.startswith(".") and (path / MANIFEST).is_file()]


def find_drafts(run_folder: Path) -> list[tuple[Path, int]]:
    """Folders of snapshots half made or half removed, and the process that was at it."""
    folder = run_folder / _FOLDER
    matches = [_DRAFT.fullmatch(path.name) for path in folder.iterdir()] if folder.is_dir() else []
    return sorted((folder / match[0], int(match[1])) for match in matches if match)


def renew(path: Path, members: Sequence[str]) -> bool:
    """Let the manifest say what these of its files are now, if it says it of them at all; whether that is news."""
    described = read(path)
    known = [member for member in members if member in described.files]
    files = described.files | {member: _hash(path, described, member) for member in known}
    if files == described.files:
        return False
    write_manifest(path, replace(described, files=files))
    return True


def read(path: Path) -> Snapshot:
    """Its manifest. Raises RunFolderError where `path` is no snapshot, FormatError on an unknown format."""
    try:
        data = (path / MANIFEST).read_bytes()
    except OSError as error:
        raise RunFolderError(f"the snapshot {path}", f"{MANIFEST} does not read: {error}", "take a new one") from error
    return from_json(data, place=str(path / MANIFEST))


def from_json(data: bytes, *, place: str) -> Snapshot:
    """What a manifest says. Raises RunFolderError where it is none, FormatError on an unknown format."""
    try:
        format_ = parse(data, _Head).format
        if format_ != FORMAT:
            raise FormatError(f"{place}: format {format_}; this code reads {FORMAT}")
        described = parse(data, Snapshot)
    except DocumentError as error:
        raise RunFolderError(f"the snapshot {place}", f"it does not read: {error}", "take a new one") from error
    lacking = [needed for needed in _NEEDED if needed not in described.files]
    if lacking:
        raise RunFolderError(f"the snapshot {place}", f"it does not name {', '.join(lacking)}", "take a new one")
    return described


def to_json(described: Snapshot) -> dict[str, Any]:
    """A manifest."""
    return {"format": FORMAT, **asdict(described)}


def find(run_folder: Path, name: str) -> Path:
    """The folder of the snapshot `name`. Raises UserError where there is none."""
    check_name(name)
    path = run_folder / _FOLDER / name
    if not (path / MANIFEST).is_file():
        known = ", ".join(folder.name for folder in find_folders(run_folder)) or "it has none"
        raise UserError(f"the snapshot {name} of {run_folder.name}", f"there is none of that name: {known}", "name one")
    return path


def delete(run_folder: Path, name: str) -> None:
    """Remove a snapshot. What it shares with the run and with branches stays theirs."""
    path = find(run_folder, name)
    gone = path.with_name(f".{name}.{os.getpid()}.gone")
    shutil.rmtree(gone, ignore_errors=True)  # a call of ours that was broken off
    path.rename(gone)
    sync_folder(path.parent)
    shutil.rmtree(gone)


def settle(path: Path) -> None:
    """Have a file of its own for each segment behind whose end, in the snapshot, more was written: what is erased there
    must not live on here."""
    for member, num_bytes in read(path).links.items():
        segment = path / member
        if segment.stat().st_size > num_bytes:
            draft = segment.with_name(f".{segment.name}.{os.getpid()}.tmp")
            copy(segment, draft, num_bytes=num_bytes)
            sync_file(draft)
            draft.replace(segment)
            sync_folder(segment.parent)


def verify(path: Path) -> Snapshot:
    """Compare every file with the manifest, which is complete from then on, where it can be written.

    Raises RunFolderError naming those that are missing, changed, or added.
    """
    described = read(path)
    for member in described.members:
        check_member(path, member)
    found = {member for member in _walk(path) if member != MANIFEST and not _LEFT.fullmatch(member)}
    faults = [f"{member} is missing" for member in sorted(set(described.members) - found)]
    faults += [f"{member} is not of the snapshot" for member in sorted(found - set(described.members))]
    there = [member for member in described.members if member in found]
    faults += [f"{member} was changed" for member in there if _is_changed(path, described, member)]
    if faults:
        raise RunFolderError(
            f"the snapshot {path}", "; ".join(faults[:10]), "restore it from a copy, or take a new one"
        )
    return complete(path)


def complete(path: Path) -> Snapshot:
    """Have the manifest say the sha256 of every file, where it can be written; the manifest."""
    described = read(path)
    missing = {member: _hash(path, described, member) for member in described.links if member not in described.files}
    if missing:
        described = replace(described, files=dict(sorted((described.files | missing).items())))
        if os.access(path, os.W_OK):
            write_manifest(path, described)
    return described


def _hash(path: Path, described: Snapshot, member: str) -> str:
    return hash_file(path / member, num_bytes=described.links.get(member))


def _is_changed(path: Path, described: Snapshot, member: str) -> bool:
    """Whether a file is not what the manifest says or, where that says only how long it is, a segment does not read."""
    digest, num_bytes = described.files.get(member), described.links.get(member, 0)
    if digest is not None:
        return _hash(path, described, member) != digest
    if (path / member).stat().st_size < num_bytes:
        return True
    folder, _, name = member.rpartition("/")
    if not name.endswith(".seg"):
        return False
    try:
        start = int(name.removesuffix(".seg"), 16)
        return any(isinstance(item, Gap) for item in LogReader(path / folder).walk(start, start + num_bytes))
    except (StoreError, ValueError):
        return True


def write_manifest(path: Path, described: Snapshot) -> None:
    """Durably."""
    write_durably(path / MANIFEST, _to_text(described).encode())


def _to_text(described: Snapshot) -> str:
    return json.dumps(to_json(described), indent=1) + "\n"


# ---------------------------------------------------------------------------------------------- filling


class _Draft:
    """A snapshot's folder as it fills; what is told of each file."""

    def __init__(self, folder: Path, run_folder: Path) -> None:
        self.folder, self._run_folder = folder, run_folder
        self.files: dict[str, str] = {}
        self.links: dict[str, int] = {}

    def copy(self, member: str) -> None:
        self.files[member] = copy(self._run_folder / member, self.folder / member)

    def link(self, member: str, *, num_bytes: int | None = None) -> None:
        """What never changes again: the whole file, or its first bytes. Raises FileNotFoundError where it is gone."""
        source = self._run_folder / member
        num_bytes = source.stat().st_size if num_bytes is None else num_bytes
        digest = link(source, self.folder / member, num_bytes=num_bytes)
        if digest is None:
            self.links[member] = num_bytes
        else:
            self.files[member] = digest

    def keep_tree(self, member: str, keep: Callable[[str], None]) -> None:
        """Every file below. Raises FileNotFoundError where it is gone, or goes."""
        if not (self._run_folder / member).is_dir():
            raise FileNotFoundError(self._run_folder / member)
        for inner in list(_walk(self._run_folder / member)):
            keep(f"{member}/{inner}")

    def keep_log(self, member: str, *, end: int) -> None:
        """The segments of a log up to LSN `end`; that of the owner, who writes on behind it, too."""
        source, target = self._run_folder / member, self.folder / member
        target.mkdir(parents=True)
        if (source / LINEAGE).is_file():
            self.copy(f"{member}/{LINEAGE}")
        for segment in LogReader(source).segments():
            if segment.start_lsn >= end:
                break
            num_bytes = min(end, segment.end_lsn) - segment.start_lsn
            self.link(f"{member}/{segment.path.name}", num_bytes=num_bytes)
        write_end(target, end)
        self.files[f"{member}/{END}"] = hash_file(target / END)

    def forget_tree(self, member: str) -> None:
        shutil.rmtree(self.folder / member, ignore_errors=True)
        for told in (self.files, self.links):
            for path in [path for path in told if path.startswith(f"{member}/")]:
                del told[path]


def _fill(folder: Path, run_folder: Path, name: str, wanted: Callable[[Checkpoint], bool] | None) -> Snapshot:
    draft, store = _Draft(folder, run_folder), run_folder / "store"
    uuid = read_identity(store)
    records = Records(store, uuid=uuid)
    milestones = _find_milestones(store, uuid)
    control_lsn = records.control.watermark()  # before data's: what it names is then below data's
    data_lsn = records.data.watermark()
    if milestones.control_lsn > control_lsn:
        milestones = Milestones()  # the index is ahead of its log: of no use
    milestones = milestones.go_on(records.scan_control(max(0, milestones.control_lsn - 1), control_lsn, kinds=_MARKED))
    for member in ("config.yaml", "manifest.json", "store/store.json"):
        draft.copy(member)
    draft.keep_log("store/control", end=control_lsn)
    draft.keep_log("store/data", end=data_lsn)
    found = records.scan_control(0, control_lsn, kinds=(Kind.CHECKPOINT,))
    logged = (record for _, record in found if isinstance(record, Checkpoint))
    if wanted is None:
        checkpoints = _keep_ends(draft, run_folder, logged, newest=milestones.checkpoints)
    else:
        checkpoints = _keep_checkpoints(draft, run_folder, filter(wanted, logged))
    for tree, keep in (
        ("model", draft.link),
        ("task", draft.copy),
    ):  # a person changes task/ in place, and never model/
        if (run_folder / tree).is_dir():
            draft.keep_tree(tree, keep)
    return Snapshot(
        name=name,
        run=run_folder.name,
        created=datetime.now(UTC).isoformat(timespec="microseconds"),
        store_uuid=str(uuid),
        data_lsn=data_lsn,
        control_lsn=control_lsn,
        version=milestones.version,
        checkpoints=checkpoints,
        files=dict(sorted(draft.files.items())),
        links=draft.links,
    )


def _find_milestones(store: Path, uuid: UUID) -> Milestones:
    """As the index has them; none where there is no index."""
    index = IndexView(store / "index", uuid=uuid)
    try:
        with index.at_one_cut():
            return find_milestones(index)
    except StoreError:
        return Milestones()


def _keep_ends(
    draft: _Draft, run_folder: Path, logged: Iterator[Checkpoint], *, newest: Sequence[Checkpoint]
) -> tuple[str, ...]:
    """Genesis and the newest checkpoint that is whole; their folders. `logged`: all of them, read only as far as need
    be; `newest`: some of the last, none only where there is none at all.

    A live run forgets old checkpoints, but not its newest: if that one goes while it is linked, a newer one is there,
    later than this snapshot's log, and the next older one is taken.
    """
    genesis = next(logged, None) if newest else None
    if genesis is None:
        return ()
    kept = _keep_checkpoints(draft, run_folder, [genesis])
    for records in (newest, logged):
        for record in reversed([*records]):
            if record.folder != genesis.folder and (last := _keep_checkpoints(draft, run_folder, [record])):
                return (*kept, *last)
    if not kept:
        raise RunFolderError(
            f"a snapshot of {run_folder}", "none of the checkpoints that its log names is there", "restore one of them"
        )
    return kept


def _keep_checkpoints(draft: _Draft, run_folder: Path, records: Iterable[Checkpoint]) -> tuple[str, ...]:
    """Link those that are whole; their folders. One that goes while it is linked was not there."""
    kept: list[str] = []
    for folder in dict.fromkeys(record.folder for record in records):
        check_member(run_folder, folder)
        try:
            draft.keep_tree(folder, draft.link)
        except FileNotFoundError:
            draft.forget_tree(folder)
            continue
        kept.append(folder)
    return tuple(kept)


def link(source: Path, target: Path, *, num_bytes: int | None = None) -> str | None:
    """Hard-link a file of which at least the first bytes never change again. Where it cannot be linked those are
    copied: their sha256."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_symlink():
        return copy(source, target, num_bytes=num_bytes)
    try:
        target.hardlink_to(source)
    except OSError as error:
        if isinstance(error, FileNotFoundError):
            raise
        return copy(source, target, num_bytes=num_bytes)
    return None


def copy(source: Path, target: Path, *, num_bytes: int | None = None) -> str:
    """Copy a file, or its first bytes; the copy's sha256."""
    target.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    with source.open("rb") as reader, target.open("wb") as writer:
        for chunk in read_chunks(reader, num_bytes):
            writer.write(chunk)
            digest.update(chunk)
    return digest.hexdigest()


# ---------------------------------------------------------------------------------------------- files


def check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise UserError(
            f"a snapshot named {name!r}",
            "a name has up to 100 letters, digits, dots, dashes and underscores, and starts with a letter or digit",
            "choose such a name",
        )


def check_member(root: Path, member: str) -> None:
    """Raises UserError where a path that a file or record names leads out of `root`, by dots or by links."""
    path = PurePosixPath(member)
    plain = not path.is_absolute() and ".." not in path.parts and bool(path.parts) and "\0" not in member
    if not plain or not (root / path).resolve().is_relative_to(root.resolve()):
        raise UserError(
            f"{member!r} in {root}", "it leads out of the folder", "do not use this folder: it was tampered with"
        )


def _walk(folder: Path) -> Iterator[str]:
    """Relative paths of all files below; a link is an entry of its own, not what it points to."""
    for current, _, names in os.walk(folder, onerror=_raise):
        for name in names:
            yield (Path(current) / name).relative_to(folder).as_posix()


def _raise(error: OSError) -> None:
    raise error


def hash_file(path: Path, *, num_bytes: int | None = None) -> str:
    """sha256 of a file, or of its first bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for chunk in read_chunks(file, num_bytes):
            digest.update(chunk)
    return digest.hexdigest()


def read_chunks(file: BinaryIO, num_bytes: int | None) -> Iterator[bytes]:
    """The first bytes of a file, or all."""
    left = sys.maxsize if num_bytes is None else num_bytes
    while left > 0 and (chunk := file.read(min(left, _CHUNK_BYTES))):
        yield chunk
        left -= len(chunk)
