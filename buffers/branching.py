"""Makes a run of its own out of a snapshot: restored as a copy, or as a branch that shares what never changes.

The new run goes on from the snapshot's last decision. It is another store, with a uuid of its own: what a producer, a
learner or a manifest of the old one says is refused. Its segments stay under the names of the stores that wrote them
(buffers/log/lineage.py). The folder gets its name last of all, when everything in it is synced.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any
from uuid import UUID

from buffers import snapshots
from buffers.inspection import OnProgress, ignore
from buffers.log.ending import END
from buffers.log.files import sync_folder, sync_tree, write_durably
from buffers.log.identity import BEGUN, create_store, write_epoch
from buffers.log.lineage import LINEAGE, Lineage, read_lineage, write_lineage
from buffers.log.recovery import examine
from buffers.snapshots import Snapshot
from configs.documents import DocumentError, read
from contracts.errors import RunFolderError, UserError, is_disk_full

_NEVER_EDITED = ("store/", "checkpoints/", "versions/", "model/")  # a person changes config.yaml and task/ in place
_LOGS = ("data", "control")
_OWN = frozenset(
    ("manifest.json", "store/store.json", *(f"store/{log}/{name}" for log in _LOGS for name in (LINEAGE, END)))
)


def restore(snapshot: Path, to: Path, *, share: bool, on_progress: OnProgress = ignore) -> UUID:
    """A new run at `to` from the snapshot in the folder `snapshot`; its store's uuid.

    `share`: by hard links, where the file system can; else every byte is copied. Raises RunFolderError where the
    snapshot is not whole, UserError where there is something at `to` or its name is no plain name.
    """
    check_place(to)
    described = snapshots.verify(snapshot)
    manifest = _read_manifest(snapshot)
    _make_parent(to)
    draft = to.with_name(f".{to.name}.{os.getpid()}.tmp")
    shutil.rmtree(draft, ignore_errors=True)
    try:
        members = [member for member in described.members if member not in _OWN]
        for done, member in enumerate(members):
            num_bytes = described.links.get(member)
            is_whole = num_bytes is None or (snapshot / member).stat().st_size == num_bytes
            shared = share and is_whole and member.startswith(_NEVER_EDITED)
            (snapshots.link if shared else snapshots.copy)(snapshot / member, draft / member, num_bytes=num_bytes)
            on_progress(done + 1, len(members))
        uuid = _adopt(snapshot, draft, described, manifest | {"run": to.name})
        sync_tree(draft)
        draft.rename(to)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    sync_folder(to.parent)
    return uuid


def check_place(to: Path) -> None:
    """Raises UserError unless a run can be made at `to`."""
    snapshots.check_name(to.name)
    if os.path.lexists(to):  # a link that leads nowhere is something too
        raise UserError(f"a run in {to}", "there is something already", "name a folder that does not exist")
    above = next(parent for parent in to.absolute().parents if os.path.lexists(parent))
    if not above.is_dir():
        raise UserError(f"a run in {to}", f"{above} is no folder", "name a folder that can be made")


def _make_parent(to: Path) -> None:
    try:
        to.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if is_disk_full(error):
            raise
        raise UserError(
            f"a run in {to}", f"its folder cannot be made: {error.strerror}", "name a folder that can be made"
        ) from error


def _read_manifest(snapshot: Path) -> dict[str, Any]:
    try:
        return read(snapshot / "manifest.json", dict[str, Any])
    except DocumentError as error:
        raise RunFolderError(f"the snapshot {snapshot}", f"its manifest.json does not read: {error}", "") from error


def _adopt(snapshot: Path, draft: Path, described: Snapshot, manifest: dict[str, Any]) -> UUID:
    """Make the files in `draft` a run of its own."""
    store, old = draft / "store", UUID(described.store_uuid)
    uuid = create_store(store)
    epoch = 0
    for log, end_lsn in (("data", described.data_lsn), ("control", described.control_lsn)):
        lineage = read_lineage(snapshot / "store" / log) or Lineage(old, ())
        write_lineage(store / log, lineage.branch(uuid, end_lsn=end_lsn))
        found = examine(store / log, uuid=uuid)
        if found.end_lsn < end_lsn:  # its last frames are damaged: from here on it is the new store's log
            write_lineage(store / log, lineage.branch(uuid, end_lsn=found.end_lsn))
        epoch = max(epoch, found.epoch)
    write_epoch(store, epoch)
    write_durably(store / BEGUN, b"")
    came_from = {
        "run": described.run,
        "snapshot": described.name,
        "store_uuid": described.store_uuid,
        "data_lsn": described.data_lsn,
        "control_lsn": described.control_lsn,
    }
    adopted = manifest | {"store_uuid": str(uuid), "from": came_from}
    write_durably(draft / "manifest.json", (json.dumps(adopted, indent=1) + "\n").encode())
    return uuid
