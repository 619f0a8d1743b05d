"""A run's folder: made whole or not at all, found again by name, and never taken for one if it is something else.

runs/NAME-YYYYmmdd-HHMMSS/ holds config.yaml (resolved), manifest.json, task/ (the user's own code and data, where the
configuration names some), and what the run writes; runs/latest points to the newest.
"""

from __future__ import annotations

import difflib
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

from configs.documents import STRICT, Count, DocumentError, parse
from configs.loader import config_hash, dump, load
from configs.objects import own_folder
from configs.schema import RunConfig
from console import task_folder
from contracts.errors import RunFolderError, StoreIdentityError, UserError

FORMAT = 1
LATEST = "latest"


def create(config: RunConfig, *, source: Path = Path(), name: str | None = None) -> Path:
    """A new folder, absolute, with config.yaml, manifest.json, and what the run needs of the user's folder `source` in
    it; `latest` points to it.

    `name`: of a folder that does not exist, instead of the configuration's name and the time. Raises RunFolderError
    where the root cannot be written, UserError where `source` cannot be taken along.
    """
    from buffers.log.files import sync_folder, write_durably

    root = Path(config.root).absolute()
    now = datetime.now(UTC)
    try:
        root.mkdir(parents=True, exist_ok=True)
        folder = root / name if name else _free_name(root, f"{config.name}-{now:%Y%m%d-%H%M%S}")
        draft = root / f".{folder.name}.{os.getpid()}"
        draft.mkdir()
        try:
            write_durably(draft / "config.yaml", dump(config).encode())
            manifest = {
                "format": FORMAT,
                "run": folder.name,
                "created": now.isoformat(timespec="seconds"),
                "config_hash": config_hash(config),
                "store_uuid": None,
            }
            write_durably(draft / "manifest.json", (json.dumps(manifest, indent=1) + "\n").encode())
            task_folder.copy(config, source, own_folder(draft))
            draft.rename(folder)
            sync_folder(root)
        except (OSError, UserError):
            shutil.rmtree(draft, ignore_errors=True)
            raise
        _point(root / LATEST, folder.name)
    except OSError as error:
        raise RunFolderError(
            f"a run folder under {root}",
            f"it cannot be written: {error.strerror or error}",
            "make it writable, or choose another place: --set root=/some/folder",
        ) from None
    return folder


def discard(folder: Path) -> None:
    """Take back a folder in which no run ever began; `latest` points to the newest one that is left, if any."""
    shutil.rmtree(folder)
    latest = folder.parent / LATEST
    if latest.is_symlink() and not latest.exists():
        left = names(folder.parent)
        if left:
            _point(latest, left[-1])
        else:
            latest.unlink()


def resolve(name: str, *, root: Path = Path("runs")) -> Path:
    """The absolute folder of the run `name`: `latest`, a name under `root`, or a path.

    Raises RunFolderError where there is none, or where it is not one of ours.
    """
    for folder in (root / name, Path(name)):
        if folder.is_dir():
            resolved = folder.resolve()
            read_manifest(resolved)
            return resolved
    known = names(root)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.3) or known[-3:]
    raise RunFolderError(
        f"the run {name}",
        f"no folder of that name under {root.absolute()}, and no such path",
        f"runs there: {', '.join(near)}" if near else "start one: ratchet run configs/quickstart.yaml",
    )


def name_new(name: str, *, beside: Path) -> Path:
    """Where a new run goes: beside others, or at a path. Raises UserError on the name that is no run's own."""
    plain = name == Path(name).name
    if plain and name == LATEST:
        raise UserError("a run named latest", "that names the newest run, whichever it is", "choose another name")
    return (beside / name if plain else Path(name)).absolute()


@dataclass(frozen=True)
class _Head:
    """What is looked at before anything else of manifest.json is believed."""

    __pydantic_config__ = STRICT
    format: Count


@dataclass(frozen=True)
class _Manifest:
    """manifest.json. `store_uuid` None: no store was made yet."""

    __pydantic_config__ = STRICT
    run: str = ""
    created: str = ""
    config_hash: str = ""
    store_uuid: UUID | None = None


def read_manifest(folder: Path) -> dict[str, Any]:
    """manifest.json, its keys above and whatever else it says.

    Raises RunFolderError where it is missing, damaged, or of an unknown format.
    """
    try:
        data = (folder / "manifest.json").read_bytes()
        version = parse(data, _Head).format
        if version != FORMAT:
            raise RunFolderError(
                f"the run {folder}",
                f"its format is {version!r}; this code knows {FORMAT}",
                "use the version of ratchet that wrote it",
            )
        return asdict(parse(data, _Manifest)) | parse(data, dict[str, Any])
    except (OSError, DocumentError) as error:
        why = f" ({error})" if isinstance(error, DocumentError) else ""
        raise RunFolderError(
            f"the run {folder}",
            f"it has no readable manifest.json: not a run folder{why}",
            "name a folder under runs/",
        ) from None


def check_store(folder: Path) -> None:
    """Raises RunFolderError unless the run's store is the one that its manifest names, or was not made yet."""
    from buffers.log.identity import read_identity

    named = read_manifest(folder)["store_uuid"]
    if named is None:
        return
    asked = f"go on with {folder.name}, whose experience is in the store {named}"
    todo = f"bring that folder back to {folder / 'store'}; without it nothing of this run can go on: start a new one"
    try:
        found = read_identity(folder / "store")
    except StoreIdentityError as error:
        raise RunFolderError(asked, str(error), todo) from None
    if str(found) != named:
        raise RunFolderError(asked, f"{folder / 'store'} holds another store, {found}", todo)


def refuse_shards(folder: Path, *, asked: str) -> None:
    """For what is not built for a run whose experience lies in several stores. Raises UserError there."""
    shards = load(folder / "config.yaml").store.shards
    if shards > 1:
        raise UserError(
            f"{asked} of {folder.name}",
            f"its experience lies in {shards} shards (store.shards), and this works on one store alone so far",
            "what works over shards: run, resume, status, replay, store verify, model export",
        )


@contextmanager
def occupied(folder: Path) -> Iterator[None]:
    """No other process drives the run inside the block. Raises RunFolderError where one does."""
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise RunFolderError(
            f"go on with {folder.name}",
            "another process drives it at this moment",
            f"look at it with `ratchet status {folder.name}`, or end it first with `ratchet stop {folder.name}`",
        ) from None
    finally:
        os.close(lock)


def names(root: Path) -> list[str]:
    """Run folders under `root`, oldest first."""
    if not root.is_dir():
        return []
    found = [path for path in root.iterdir() if not path.is_symlink() and (path / "manifest.json").is_file()]
    return [path.name for path in sorted(found, key=lambda path: (path / "manifest.json").stat().st_mtime_ns)]


def _free_name(root: Path, stem: str) -> Path:
    """`stem`, or `stem-2`, `stem-3` where runs were started in the same second."""
    folder, count = root / stem, 1
    while folder.exists():
        count += 1
        folder = root / f"{stem}-{count}"
    return folder


def _point(link: Path, target: str) -> None:
    draft = link.with_name(f".{link.name}.{os.getpid()}")
    draft.unlink(missing_ok=True)
    draft.symlink_to(target)
    draft.replace(link)
