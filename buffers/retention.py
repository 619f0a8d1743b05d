"""Lets go of the oldest experience: whole segments of the data log, never what somebody still needs.

    TRIM is durable, with the sums of what goes ─► the segments' names are removed, oldest first ─► the folder is synced

A crash in between: the next owner removes the rest. What stays whatever the bounds say: groups that have not ended
(open, pending, held, ready, in an open batch) or whose task is to be handed out again, or that may be learned from once
more (buffers/window.py); the rows of every batch after
the oldest kept checkpoint beside genesis, so that a start and a replay from there find them; what the index has not
taken in; what a reader holds (buffers/log/readers.py). Snapshots have files of their own. Versions below that
checkpoint cannot be computed again from then on. Stored successes hold nothing back: those below the cut are replayed
no more, or a task that is rarely solved would keep the whole log. Not covered: a trimmed store whose index is lost
forgets those of leases below the cut too.
"""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from buffers.codec import peek
from buffers.groups import Group
from buffers.log.files import sync_folder
from buffers.log.readers import make_gate, trimming
from buffers.log.segments import Segment, list_starts, name_segment
from buffers.reading import Records
from buffers.state import StoreState
from buffers.window import Window
from contracts.records import Batch, Checkpoint, Fault, Kind, Quarantined, Trim


@dataclass(frozen=True)
class Trimmed:
    """What went: segments, and the LSN at which the data log begins now."""

    num_segments: int
    data_lsn: int
    reason: str


@dataclass
class _Content:
    """What one segment holds."""

    leases: list[int]
    num_episodes: int
    strays: int  # quarantined episodes of no lease


class Retention:
    """One trim at a time."""

    def __init__(self, state: StoreState, *, records: Records, folder: Path, window: Window) -> None:
        self._state, self._records, self._folder, self._window = state, records, folder, window
        make_gate(folder)

    def trim(self) -> Trimmed | None:
        """What the bounds ask for and nobody needs; None where that is nothing."""
        if not self._state.config.store.retention.is_bounded:
            return None
        with self._state.lock:
            steps = dict(self._state.fold.last_steps)
        end = self._state.control.writer.durable_lsn
        needed = self._find_needed_by_batches(end)
        with trimming(self._folder) as pinned:
            bound = min(needed, self._records_end() if pinned is None else pinned)
            going, contents, reason = self._choose(bound)
            if not going:
                return None
            data_lsn = going[-1].end_lsn
            future = None
            while future is None:
                with self._state.lock:
                    if data_lsn > self._find_bound_locked():
                        return None  # somebody came in between; the next time
                    if steps == self._state.fold.last_steps:
                        self._state.trimming_lsn = data_lsn
                        future = self._state.control.submit([self._sum_up(data_lsn, contents, reason)])
                    steps = dict(self._state.fold.last_steps)
                if future is None and data_lsn > self._find_named(since=end):
                    return None  # a batch came in between
            self._state.finish(future)
            finish_trim(self._folder, data_lsn)
        return Trimmed(num_segments=len(going), data_lsn=data_lsn, reason=reason)

    def _records_end(self) -> int:
        with self._state.lock:
            return self._find_bound_locked()

    def _find_bound_locked(self) -> int:
        """Everything at or above it may still be needed by what has not ended."""
        fold = self._state.fold
        leases = [lease for stage in fold.stages.values() for lease in stage]
        leases += [lease for lease, _ in fold.positions.values()]
        batches = (*fold.open_batches.values(), *self._state.naming)
        leases += [row.episode_lsn for batch in batches for row in batch.rows]
        awaited = self._state.leases.oldest_awaited
        if awaited is not None:
            leases.append(awaited)
        return int(min([*leases, self._state.index.data_lsn, self._window.floor]))

    def _find_named(self, *, since: int) -> int:
        """The lowest LSN that a batch from this LSN of the control log on names."""
        end = self._state.control.writer.durable_lsn
        batches = [one for _, one in self._records.read_decisions(since, end, (Kind.BATCH,)) if isinstance(one, Batch)]
        lsns = [row.episode_lsn for batch in batches for row in batch.rows]
        return min(lsns, default=self._records.data.watermark())

    def _find_needed_by_batches(self, end: int) -> int:
        """The lowest LSN that a batch after the oldest kept checkpoint beside genesis names; 0 where there is none.
        `end`: of the control log, as far as it is looked at."""
        decisions = self._records.read_decisions(0, end, (Kind.BATCH, Kind.CHECKPOINT))
        run = self._folder.parent
        steps = [
            one.step
            for _, one in decisions
            if isinstance(one, Checkpoint) and one.step > 0 and (run / one.folder).is_dir()
        ]
        if not steps:
            return 0
        later = [one for _, one in decisions if isinstance(one, Batch) and one.step > min(steps)]
        lsns = [lsn for batch in later for row in batch.rows for lsn in (row.episode_lsn, row.lease)]
        return min(lsns, default=self._records.data.watermark())

    def _choose(self, bound: int) -> tuple[list[Segment], list[_Content], str]:
        """The oldest segments below `bound` that go, what they hold, and which bound asked for the last."""
        rule, fold = self._state.config.store.retention, self._state.fold
        segments = [segment for segment in self._records.data.segments() if segment.sealed]
        num_bytes = sum(segment.end_lsn - segment.start_lsn for segment in segments)
        num_episodes = fold.num_episodes - (0 if fold.trim is None else fold.trim.episodes)
        going: list[Segment] = []
        contents: list[_Content] = []
        reason = ""
        for segment in segments[:-1]:
            if segment.end_lsn > bound:
                break
            why = None
            if rule.max_mib is not None and num_bytes > rule.max_mib << 20:
                why = "size"
            elif rule.max_age_s is not None and time.time() - segment.path.stat().st_mtime > rule.max_age_s:
                why = "age"
            elif rule.max_episodes is not None and num_episodes > rule.max_episodes:
                why = "count"
            if why is None:
                break
            content = self._look_into(segment)
            num_bytes -= segment.end_lsn - segment.start_lsn
            num_episodes -= content.num_episodes
            going, contents, reason = [*going, segment], [*contents, content], why
        return going, contents, reason

    def _look_into(self, segment: Segment) -> _Content:
        content = _Content([], 0, 0)
        for frame in self._records.data.scan(segment.start_lsn, segment.end_lsn):
            if frame.kind == Kind.TASK:
                content.leases.append(frame.lsn)
            elif frame.kind == Kind.EPISODE:
                content.num_episodes += 1
            elif frame.kind == Kind.QUARANTINED:
                record = peek(frame.kind, frame.payload)
                content.strays += isinstance(record, Quarantined) and record.fault is Fault.LEASE
        return content

    def _sum_up(self, data_lsn: int, contents: Sequence[_Content], reason: str) -> Trim:
        """The sums over all that was ever trimmed, this included."""
        fold, before = self._state.fold, self._state.fold.trim
        ended: Counter[str] = Counter(before.ended if before else {})
        quarantined: Counter[str] = Counter(before.quarantined if before else {})
        handed, episodes, late = (before.handed, before.episodes, before.episodes_late) if before else (0, 0, 0)
        for group in self._groups(contents):
            handed += 1
            episodes += len(group.lsns) - len(group.faults)
            late += group.num_late
            quarantined.update(fault.value for fault in group.faults.values())
            assert group.disposition is not None  # those that have not ended lie above the bound
            ended[group.disposition.value] += 1
        strays = sum(content.strays for content in contents)
        if strays:
            quarantined[Fault.LEASE.value] += strays
        return Trim(
            data_lsn=data_lsn,
            reason=reason,
            handed=handed,
            ended=dict(ended),
            episodes=episodes,
            episodes_late=late,
            quarantined=dict(quarantined),
            frontier=fold.frontier,
            ahead=tuple(sorted(fold.ahead)),
            wall_time=time.time(),
        )

    def _groups(self, contents: Sequence[_Content]) -> Iterator[Group]:
        for content in contents:
            for lease in content.leases:
                yield self._state.fold.groups[lease]


def resume_trim(store: Path, data_lsn: int) -> None:
    """Remove what a crash left of a trim up to there, as far as no reader holds it; the next trim or owner goes on."""
    make_gate(store)
    with trimming(store) as pinned:
        finish_trim(store, data_lsn if pinned is None else min(data_lsn, pinned))


def finish_trim(store: Path, data_lsn: int) -> None:
    """Remove the segments that lie wholly below; also those that were left of an earlier trim. Inside `trimming`."""
    folder = store / "data"
    starts = list_starts(folder)
    going = [start for start, end in itertools.pairwise(starts) if end <= data_lsn]
    for start in going:
        name_segment(folder, start).unlink()
    if going:
        sync_folder(folder)
