"""Takes the contents of chosen records out of a store for good, and says so in the log.

    1  ERASED (and CLOSED for groups that were still to be trained on) is durable in the control log
    2  each segment that holds such a record is copied with its contents blanked, synced, renamed into place
    3  the same in every snapshot of the run, whose manifest then says so

A crash after 1 leaves work that the next call of `erase`, with any choice, ends. Blanked frames keep place, length and
kind: LSNs stay, and whatever counts tasks and episodes counts as before. What is left of an episode: who, when, under
which version, and its reward; of a task: its name. Not covered: copies that were taken elsewhere (archives, exports).
"""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from buffers import snapshots
from buffers.codec import decode, encode, peek
from buffers.groups import Stage
from buffers.inspection import OnProgress, ignore
from buffers.log.patching import patch, reframe
from buffers.log.reader import LogReader
from buffers.log.segments import Gap
from buffers.tending import Tended, tended
from buffers.view import StoreView
from contracts.errors import UserError
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
    """What was done. `versions`: those that cannot be computed again from now on."""

    lsns: tuple[int, ...]
    num_segments: int
    num_snapshots: int
    versions: tuple[int, ...]


def erase(run_folder: Path, choice: Choice, *, reason: str, on_progress: OnProgress = ignore) -> Erasure:
    """Erase `choice` in the store of a run that is not running, and in its snapshots.

    Raises UserError where it runs, where nothing fits the choice, or where the next start needs what was chosen.
    """
    with tended(run_folder / "store") as store:
        view = StoreView.open(store.folder)
        decisions = view.decisions()
        begun = {lsn for _, record in decisions if isinstance(record, Erased) for lsn in record.lsns}
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
    return Erasure(
        lsns=fresh, num_segments=num_segments, num_snapshots=num_snapshots, versions=_find_lost(decisions, every)
    )


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
    blank(folder / "store", lsns)
    return snapshots.renew(folder, [f"store/data/{path.name}" for path in (folder / "store" / "data").glob("*.seg")])
