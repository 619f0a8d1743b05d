"""Takes the contents of chosen records out of a store for good, and says so in the log.

    1  ERASED (and CLOSED for groups that were still to be trained on) is durable in the control log
    2  each segment that holds such a record is copied with its contents blanked, synced, renamed into place
    3  the same in every snapshot of the run, whose manifest then says so, and in segments that a repair set aside
    4  the index says what the logs say now, and is written anew: no page of it remembers

What nobody was promised is removed whole: ends that crashes tore off, half-made snapshots, indexes set aside. A crash
after 1 leaves work that the next call of `erase`, with any choice, ends. Blanked frames keep place, length and kind:
LSNs stay, and whatever counts tasks and episodes counts as before. What is left of an episode: who, when, under which
version, and its reward; of a task: its name. Not reached, but named as far as it is known here: archives, other runs
that came from this one, damaged ranges. Not reached and not known: exports and copies that were taken elsewhere.
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from uuid import UUID

import numpy as np

from buffers import snapshots
from buffers.archive import find_senders, read_archived
from buffers.codec import decode, encode, peek
from buffers.groups import Stage
from buffers.index import forget_payloads
from buffers.inspection import OnProgress, ignore
from buffers.log.files import sync_folder
from buffers.log.frames import HEADER_BYTES
from buffers.log.patching import patch, reframe
from buffers.log.reader import LogReader
from buffers.log.segments import Gap, list_starts, name_segment, read_schema
from buffers.tending import Tended, tended
from buffers.view import StoreView
from contracts.errors import FormatError, UserError
from contracts.records import (
    Batch,
    Checkpoint,
    Closed,
    ControlRecord,
    Disposition,
    Episode,
    Erased,
    Kind,
    Quarantined,
    Record,
    Task,
    Version,
)

_HOLDERS = frozenset((Kind.TASK, Kind.EPISODE, Kind.QUARANTINED))
REASON = "its experience was erased"
ASIDE = "damaged"  # where a repair keeps what it found, in the store's folder
_SET_ASIDE = re.compile(r"data-([0-9a-f]{16})\.seg-.*")


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What to erase: episodes by id or LSN, and all that came of tasks. Empty: only end what was begun."""

    episodes: frozenset[str] = frozenset()
    lsns: frozenset[int] = frozenset()
    tasks: frozenset[str] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.episodes or self.lsns or self.tasks)

    def takes(self, lsn: int, record: Record) -> bool:
        if isinstance(record, Task):
            return record.task_id in self.tasks
        if isinstance(record, Episode | Quarantined):
            return lsn in self.lsns or record.episode_id in self.episodes or record.task_id in self.tasks
        return False


@dataclass(frozen=True, kw_only=True)
class Erasure:
    """What was done. `versions`: those that cannot be computed again from now on. `removed`: files and folders that
    may have held some of it. `elsewhere`: what is known to hold it, or may, and was not reached."""

    lsns: tuple[int, ...]
    num_segments: int
    num_snapshots: int
    versions: tuple[int, ...]
    removed: tuple[str, ...]
    elsewhere: tuple[str, ...]


def erase(run_folder: Path, choice: Choice, *, reason: str, on_progress: OnProgress = ignore) -> Erasure:
    """Erase `choice` in the store of a run that is not running, and in its snapshots.

    Raises UserError where it runs or a snapshot of it is being taken, where nothing fits the choice, or where the next
    start needs what was chosen.
    """
    read_archived(run_folder / "store")  # what does not read is told before anything is changed
    with tended(run_folder / "store") as store:
        drafts = _find_drafts(run_folder)
        view = StoreView.open(store.folder)
        decisions = view.decisions()
        begun = find_erased(store.folder)
        chosen = _choose(store, choice, on_progress=on_progress) if choice else set()
        if choice and not chosen:
            raise UserError(
                "erase experience", "no episode or task of the store fits", "see: ratchet store ask, export"
            )
        fresh = tuple(sorted(chosen - begun))
        if fresh:
            _refuse_needed(run_folder, decisions, chosen)
            store.decide([*_close(view, store, fresh), Erased(lsns=fresh, reason=reason, wall_time=time.time())])
        every = begun | chosen
        num_segments = blank(store.folder, every)
        num_snapshots = sum(_blank_snapshot(folder, every) for folder in snapshots.find_folders(run_folder))
        removed = _clean(store, drafts, every) if every else []
        elsewhere = [*_find_elsewhere(run_folder, store), *_find_damage(store)] if every else []
    return Erasure(
        lsns=fresh,
        num_segments=num_segments,
        num_snapshots=num_snapshots,
        versions=_find_lost(decisions, every),
        removed=tuple(path.relative_to(run_folder).as_posix() for path in removed),
        elsewhere=tuple(elsewhere),
    )


def find_erased(store: Path) -> set[int]:
    """LSNs of all that was ever to be erased."""
    frames = LogReader(store / "control").scan()
    erased = (decode(frame.kind, frame.payload) for frame in frames if frame.kind == Kind.ERASED)
    return {lsn for record in erased if isinstance(record, Erased) for lsn in record.lsns}


def blank(store: Path, lsns: Collection[int]) -> int:
    """Take the contents of the records at `lsns` out of the data log in `store`; segments that were changed."""
    reader = LogReader(store / "data")
    num_segments = 0
    for segment in reader.segments():
        patches = {}
        for lsn in lsns:
            if not segment.start_lsn <= lsn < segment.end_lsn:
                continue
            (item,) = reader.walk(lsn, lsn + 1)
            if isinstance(item, Gap) or not has_contents(item.header.kind, item.payload):
                continue
            payload = encode(_without_contents(decode(item.header.kind, item.payload)))
            payload += bytes(item.header.length - len(payload))
            uuid = reader.lineage.at(segment.start_lsn)
            patches[lsn - segment.start_lsn] = reframe(item, payload, uuid=uuid, start_lsn=segment.start_lsn)
        if patches:
            patch(segment.path, patches)
            num_segments += 1
    return num_segments


def has_contents(kind: int, payload: bytes) -> bool:
    """Whether there is something in the record that erasing takes out."""
    if kind not in _HOLDERS:
        return False
    if kind == Kind.TASK:
        task = peek(kind, payload)
        return isinstance(task, Task) and task.payload is not None
    record = decode(kind, payload)
    if isinstance(record, Quarantined):
        return bool(len(record.payload))
    return isinstance(record, Episode) and bool(record.steps)


def _without_contents(record: Record) -> Record:
    if isinstance(record, Task):
        return replace(record, payload=None)
    if isinstance(record, Quarantined):
        return replace(record, payload=np.empty(0, dtype=np.uint8))
    assert isinstance(record, Episode)
    return replace(record, steps=(), reward_parts={})


def _choose(store: Tended, choice: Choice, *, on_progress: OnProgress) -> set[int]:
    reader = LogReader(store.folder / "data")
    chosen = set()
    for frame in reader.scan():
        is_empty_task = frame.kind == Kind.TASK and not has_contents(frame.kind, frame.payload)
        if frame.kind in _HOLDERS and not is_empty_task and choice.takes(frame.lsn, peek(frame.kind, frame.payload)):
            chosen.add(frame.lsn)
        on_progress(frame.next_lsn, store.data_lsn)
    return chosen


def _refuse_needed(run_folder: Path, decisions: Sequence[tuple[int, ControlRecord]], chosen: set[int]) -> None:
    """A start computes the batches after the newest checkpoint again: it must not find them erased."""
    kept = [one for _, one in decisions if isinstance(one, Checkpoint) and (run_folder / one.folder).is_dir()]
    for _, batch in decisions:
        if not isinstance(batch, Batch) or not any(row.episode_lsn in chosen for row in batch.rows):
            continue
        newest = max((one.step for one in kept if one.branch >= batch.branch), default=-1)
        if batch.step > newest:
            raise UserError(
                f"erase an episode of step {batch.step}",
                f"the next start computes that step again: the newest checkpoint is of step {newest}",
                "go on with the run until it has a later checkpoint (ratchet resume, then ratchet stop)",
            )


def _close(view: StoreView, store: Tended, lsns: Sequence[int]) -> list[Closed]:
    """CLOSED for those of the episodes' groups that might still be trained on."""
    wanted = set(lsns)
    leases = [
        lease
        for stage in (Stage.OPEN, Stage.PENDING, Stage.HELD, Stage.FAULTY, Stage.READY)
        for lease in view.fold.stages[stage]
        if lease in wanted or wanted & set(view.fold.groups[lease].lsns.values())
    ]
    if not leases:
        return []
    return [
        Closed(
            leases=tuple(sorted(leases)),
            disposition=Disposition.QUARANTINED,
            reason=REASON,
            data_lsn=store.data_lsn,
        )
    ]


def _find_lost(decisions: Sequence[tuple[int, ControlRecord]], erased: set[int]) -> tuple[int, ...]:
    batches = {
        lsn
        for lsn, batch in decisions
        if isinstance(batch, Batch) and any(row.episode_lsn in erased for row in batch.rows)
    }
    return tuple(sorted(one.version for _, one in decisions if isinstance(one, Version) and one.batch_lsn in batches))


def _blank_snapshot(folder: Path, lsns: Collection[int]) -> bool:
    """Whether the snapshot held any. Its manifest comes last: in between it has changed files, and the next call ends
    it."""
    for draft in folder.rglob(".*.tmp"):  # of a call that was killed
        draft.unlink()
    snapshots.settle(folder)
    changed = blank(folder / "store", lsns) > 0
    members = [f"store/data/{path.name}" for path in (folder / "store" / "data").glob("*.seg")]
    return snapshots.renew(folder, members) or changed


# ---------------------------------------------------------------------------------------------- beside the logs


def _find_drafts(run_folder: Path) -> list[Path]:
    """Snapshots that were never finished. Raises UserError where one is being made, or sent, at this moment."""
    drafts = snapshots.find_drafts(run_folder)
    for path, pid in [*drafts, *find_senders(run_folder)]:
        if Path(f"/proc/{pid}").exists():
            raise UserError(
                f"erase experience of {run_folder.name}",
                f"process {pid} is making, removing or sending a snapshot of it: {path.name}",
                "wait for it; where that is another process by now, remove what is called so",
            )
    return [path for path, _ in drafts]


def _clean(store: Tended, drafts: Sequence[Path], lsns: Collection[int]) -> list[Path]:
    """Reach what lies beside the logs; what was removed."""
    aside = store.folder / ASIDE
    _blank_set_aside(store, aside, lsns)
    indexes = [*aside.glob("index-*"), store.folder / "index.new", store.folder / "index.old"]
    gone = [*drafts, *(path for path in indexes if path.exists()), *(store.folder / "data").glob("*.torn")]
    for path in gone:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    for folder in {path.parent for path in gone}:
        sync_folder(folder)
    forget_payloads(store.folder / "index", uuid=store.uuid, leases=lsns)
    return gone


def _blank_set_aside(store: Tended, aside: Path, lsns: Collection[int]) -> None:
    """Zeros in place of contents: nobody reads these files as a log, and no damaged frame can be made anew."""
    reader = LogReader(store.folder / "data")
    for path in sorted(aside.glob("data-*")):
        match = _SET_ASIDE.fullmatch(path.name)
        if match is None:
            continue
        start, data, patches = int(match[1], 16), path.read_bytes(), dict[int, bytes]()
        for lsn in lsns:
            begin = lsn - start + HEADER_BYTES
            if start <= lsn and begin < len(data):
                (item,) = reader.walk(lsn, lsn + 1)
                end = item.end if isinstance(item, Gap) else lsn + HEADER_BYTES + item.header.length
                if any(data[begin : end - start]):
                    patches[begin] = bytes(min(end - start, len(data)) - begin)
        if patches:
            patch(path, patches)


def _find_elsewhere(run_folder: Path, store: Tended) -> Iterator[str]:
    archived = read_archived(store.folder)
    if archived is not None:
        yield f"the archive {archived.uri}, up to data LSN {archived.data_lsn}"
    for other in sorted(run_folder.parent.iterdir()):
        folder = other / "store" / "data"
        if other == run_folder or other.is_symlink() or not folder.is_dir():
            continue
        if any(_is_of(folder, start, store.uuid) for start in list_starts(folder)):
            yield f"{other}, which has segments of this run"


def _is_of(folder: Path, start_lsn: int, uuid: UUID) -> bool:
    try:
        schema = read_schema(name_segment(folder, start_lsn), start_lsn=start_lsn, uuid=None)
    except (FormatError, FileNotFoundError):
        return False  # it is no store's that this code wrote, or was trimmed at this moment
    return schema is not None and schema.uuid == uuid


def _find_damage(store: Tended) -> Iterator[str]:
    for start, end in LogReader(store.folder / "data").rot():
        yield f"damaged bytes of data LSN {start} to {end}"
