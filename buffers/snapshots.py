"""Keeps a run at a moment: a folder laid out like a run's own, whose log ends where it ended then.

    runs/RUN/snapshots/NAME/ { config.yaml, manifest.json, store/, checkpoints/, model/, task/, snapshot.json }

Works on a live run from any process, without its owner: logs only grow, so everything below a watermark stays as it is.
What never changes again is hard-linked, the rest copied. `snapshot.json` names every file with its sha256. The folder
gets its name last of all, when everything in it is synced: a half-made one is never taken for a snapshot.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

from pydantic import Field

from buffers.log.files import sync_folder, sync_tree, write_durably
from buffers.log.lineage import LINEAGE
from buffers.log.reader import LogReader
from buffers.log.readers import reading
from buffers.view import StoreView
from configs.documents import STRICT, Count, Digest, DocumentError, Lsn, parse
from contracts.errors import FormatError, RunFolderError, UserError
from contracts.records import Checkpoint, Kind

FORMAT = 1
MANIFEST = "snapshot.json"
_FOLDER = "snapshots"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_DRAFT = re.compile(r"\..+\.([0-9]+)\.(?:tmp|gone)")
_CHUNK_BYTES = 1 << 20
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
    files: dict[str, Digest]  # path relative to the snapshot → sha256

    @property
    def num_files(self) -> int:
        return len(self.files)


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
        take(run_folder, draft, name=name)
        sync_tree(draft)
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
    write_manifest(draft, described)
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
    """Let the manifest say what these of its files are now; whether that is news."""
    described = read(path)
    files = described.files | {member: hash_file(path / member) for member in members}
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


def verify(path: Path) -> Snapshot:
    """Compare every file with the manifest. Raises RunFolderError naming those that are missing, changed, or added."""
    described = read(path)
    for member in described.files:
        check_member(path, member)
    found = {member for member in _walk(path) if member != MANIFEST}
    faults = [f"{member} is missing" for member in sorted(described.files.keys() - found)]
    faults += [f"{member} is not of the snapshot" for member in sorted(found - described.files.keys())]
    faults += [
        f"{member} was changed"
        for member, digest in sorted(described.files.items())
        if member in found and hash_file(path / member) != digest
    ]
    if faults:
        raise RunFolderError(
            f"the snapshot {path}", "; ".join(faults[:10]), "restore it from a copy, or take a new one"
        )
    return described


def write_manifest(path: Path, described: Snapshot) -> None:
    """Durably."""
    text = json.dumps(to_json(described), indent=1) + "\n"
    write_durably(path / MANIFEST, text.encode())


# ---------------------------------------------------------------------------------------------- filling


def _fill(draft: Path, run_folder: Path, name: str, wanted: Callable[[Checkpoint], bool] | None) -> Snapshot:
    store = run_folder / "store"
    view = StoreView.open(store)  # its marks: control's was read before data's
    files = {
        member: copy(run_folder / member, draft / member)
        for member in ("config.yaml", "manifest.json", "store/store.json")
    }
    files |= _keep_log(store / "control", draft / "store" / "control", end=view.control_lsn, draft=draft)
    files |= _keep_log(store / "data", draft / "store" / "data", end=view.data_lsn, draft=draft)
    records = [record for _, record in view.decisions(kinds=[Kind.CHECKPOINT]) if isinstance(record, Checkpoint)]
    if wanted is None:
        checkpoints = _keep_ends(records, run_folder, draft, files)
    else:
        checkpoints = _keep_checkpoints(filter(wanted, records), run_folder, draft, files)
    for tree, keep in (("model", link), ("task", copy)):  # a person changes task/ in place, and never model/
        if (run_folder / tree).is_dir():
            files |= _keep_tree(run_folder, tree, draft, keep=keep)
    return Snapshot(
        name=name,
        run=run_folder.name,
        created=datetime.now(UTC).isoformat(timespec="microseconds"),
        store_uuid=str(view.uuid),
        data_lsn=view.data_lsn,
        control_lsn=view.control_lsn,
        version=view.fold.newest_version,
        checkpoints=checkpoints,
        files=dict(sorted(files.items())),
    )


def _keep_log(source: Path, target: Path, *, end: int, draft: Path) -> dict[str, str]:
    """The segments of a log up to LSN `end`: whole sealed ones by link, the one that `end` cuts as a copy."""
    target.mkdir(parents=True)
    files = {}
    if (source / LINEAGE).is_file():
        files[(target / LINEAGE).relative_to(draft).as_posix()] = copy(source / LINEAGE, target / LINEAGE)
    for segment in LogReader(source).segments():
        if segment.start_lsn >= end:
            break
        kept = target / segment.path.name
        if segment.sealed and segment.end_lsn <= end:
            digest = link(segment.path, kept)
        else:
            digest = copy(segment.path, kept, num_bytes=end - segment.start_lsn)
        files[kept.relative_to(draft).as_posix()] = digest
    return files


def _keep_ends(records: list[Checkpoint], run_folder: Path, draft: Path, files: dict[str, str]) -> tuple[str, ...]:
    """Genesis and the newest checkpoint that is whole; their folders.

    A live run forgets old checkpoints, but not its newest: if that one goes while it is linked, a newer one is there,
    later than this snapshot's log, and the next older one is taken.
    """
    kept = _keep_checkpoints(records[:1], run_folder, draft, files)
    for record in reversed(records[1:]):
        if newest := _keep_checkpoints([record], run_folder, draft, files):
            return (*kept, *newest)
    if records and not kept:
        raise RunFolderError(
            f"a snapshot of {run_folder}", "none of the checkpoints that its log names is there", "restore one of them"
        )
    return kept


def _keep_checkpoints(
    records: Iterable[Checkpoint], run_folder: Path, draft: Path, files: dict[str, str]
) -> tuple[str, ...]:
    """Link those that are whole; their folders. One that goes while it is linked was not there."""
    kept: list[str] = []
    for folder in dict.fromkeys(record.folder for record in records):
        check_member(run_folder, folder)
        try:
            files |= _keep_tree(run_folder, folder, draft, keep=link)
        except FileNotFoundError:
            shutil.rmtree(draft / folder, ignore_errors=True)
            continue
        kept.append(folder)
    return tuple(kept)


def _keep_tree(root: Path, member: str, draft: Path, *, keep: Callable[[Path, Path], str]) -> dict[str, str]:
    """Link or copy every file below `root`/`member` into the draft. Raises FileNotFoundError where it is gone, or
    goes."""
    folder = root / member
    if not folder.is_dir():
        raise FileNotFoundError(folder)
    files = {}
    for inner in list(_walk(folder)):
        path = f"{member}/{inner}"
        files[path] = keep(root / path, draft / path)
    return files


def link(source: Path, target: Path) -> str:
    """Hard-link a file that never changes again, or copy what cannot be linked; its sha256."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_symlink():
        return copy(source, target)
    try:
        target.hardlink_to(source)
    except OSError as error:
        if isinstance(error, FileNotFoundError):
            raise
        return copy(source, target)
    return hash_file(target)


def copy(source: Path, target: Path, *, num_bytes: int | None = None) -> str:
    """Copy a file, or its first bytes; the copy's sha256."""
    target.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    with source.open("rb") as reader, target.open("wb") as writer:
        left = source.stat().st_size if num_bytes is None else num_bytes
        while left > 0 and (chunk := reader.read(min(left, _CHUNK_BYTES))):
            writer.write(chunk)
            digest.update(chunk)
            left -= len(chunk)
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


def hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
