"""Writes decisions down, one at a time: sessions, batches, versions and what follows from them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace
from itertools import takewhile
from threading import Lock

from buffers.addresses import leases_in
from buffers.groups import Stage
from buffers.plain import check_values
from buffers.reading import Records
from buffers.sampling import Choice, choose_first, find_zero_spread, order_rows
from buffers.state import Due, StoreState
from buffers.successes import find_replay, find_successes, put_replays
from buffers.window import HIGHEST_PRIORITY, Window
from contracts.errors import FencedError, StoreError
from contracts.protocols import BatchRequest
from contracts.records import (
    Batch,
    Checkpoint,
    ControlRecord,
    Decision,
    Disposition,
    Dropped,
    Guard,
    Kind,
    Priority,
    Served,
    Session,
    Skip,
    Version,
)

REASONS = {
    Disposition.STALE: "older than the bound when its turn came",
    Disposition.OFF_BRANCH: "made by a version that is no ancestor of the learner's",
    Disposition.ZERO_SPREAD: "its returns are all equal, and the learner asked for groups with spread",
}
MOST_VERSIONS = 1 << 48  # beyond it a number is a mistake
MOST_REPLACED = 10  # batches' worth of groups without spread that one batch may replace; then it takes what comes


class Decider:
    """`_deciding` is held while the disk is waited for: only those who decide wait for each other."""

    def __init__(self, state: StoreState, *, records: Records, window: Window) -> None:
        self._state, self._records, self._window = state, records, window
        self._deciding = Lock()

    def open_session(self, record: ControlRecord) -> int:
        """See contracts.protocols.Store."""
        if not isinstance(record, Session):
            raise StoreError(f"a session is opened with a Session record, not a {type(record).__name__}")
        check_values(record)
        with self._deciding:
            return self._append(record)

    def decide(self, record: Decision, session: int) -> int:
        """See contracts.protocols.Store. A SKIP of the same batch, too, is compare-and-append."""
        if not isinstance(record, Decision):
            raise StoreError(f"a {type(record).__name__} is written by append_batch, open_session or the owner itself")
        check_values(record)
        if isinstance(record, Version | Served | Guard | Checkpoint) and not 0 <= record.version < MOST_VERSIONS:
            raise StoreError(f"a {type(record).__name__} of version {record.version}: versions count from 0")
        with self._deciding:
            with self._state.lock:
                self._check_session(session)
                known = None if isinstance(record, Priority) else self._find_same(record)
            if isinstance(record, Priority):
                return self._prioritise(record)
            return self._append(record) if known is None else known

    def append_batch(self, request: BatchRequest) -> tuple[int, Batch] | None:
        """See contracts.protocols.Store."""
        state = self._state
        with self._deciding:
            state.sweep()
            with state.lock:
                self._check_session(request.session)
                stored = state.fold.batch_lsns.get((request.branch, request.step))
                if stored is None and not self._can_cut(request):
                    return None
            if stored is not None:
                return self._read_batch(stored)
            self._window.load(branch=request.branch, step=request.step)
            mark = state.data.writer.sync()  # a BATCH may name only what is durable
            with state.lock:
                batch, futures = self._cut(request, mark)
            lsns = [state.finish(future)[0] for future in futures]
            return None if batch is None else (lsns[0], batch)

    def find_batch(self, request: BatchRequest) -> tuple[int, Batch] | None:
        """See contracts.shards.Shard."""
        with self._state.lock:
            self._check_session(request.session)
            stored = self._state.fold.batch_lsns.get((request.branch, request.step))
        return None if stored is None else self._read_batch(stored)

    def commit(self, batch: Batch, session: int) -> tuple[int, Batch]:
        """See contracts.shards.Shard."""
        state = self._state
        with self._deciding:
            with state.lock:
                self._check_session(session)
                stored = state.fold.batch_lsns.get((batch.branch, batch.step))
                future = state.end_locked(batch, leases=leases_in(batch, shard=0)) if stored is None else None
            return self._read_batch(stored or 0) if future is None else (state.finish(future)[0], batch)

    def choose(self, request: BatchRequest, mark: int, *, num_groups: int) -> Choice:
        """Groups for a batch, of those that were ready below `mark`. With the lock held."""
        fold, replay = self._state.fold, self._state.config.replay
        return choose_first(
            fold,
            self._find_queue(mark),
            num_groups=num_groups,
            parent_version=request.parent_version,
            max_staleness=request.max_staleness,
            with_spread=request.with_spread and fold.num_replaced < MOST_REPLACED * request.num_groups,
            may_gain_spread=lambda lease: (
                find_replay(fold, fold.groups[lease], settings=replay, seed=request.seed, kept_lsn=self._state.kept_lsn)
                is not None
            ),
        )

    def close_dropped(self, dropped: Sequence[Dropped], *, mark: int) -> list[Future[list[int]]]:
        """Submit the ends of groups that no batch may have, where no batch comes. With the lock held."""
        ends: Due = {}
        for drop in dropped:
            ends.setdefault((drop.disposition, REASONS[drop.disposition]), []).append(drop.lease)
        return [self._state.close_locked(leases, how, why, mark=mark) for (how, why), leases in ends.items()]

    def append_chosen(self, batch: Batch, session: int) -> tuple[int, Batch]:
        """See StoreOwner."""
        state = self._state
        with self._deciding:
            with state.lock:
                self._check_session(session)
                stored = state.fold.batch_lsns.get((batch.branch, batch.step))
            if stored is not None:
                return self._read_batch(stored)
            mark = state.data.writer.sync()
            with state.lock:
                self._check_chosen(batch, mark)
                written = replace(batch, data_lsn=mark, control_lsn=state.control.writer.durable_lsn)
                future = state.end_locked(written, leases=())
            return state.finish(future)[0], written

    def _check_chosen(self, batch: Batch, mark: int) -> None:
        fold, where = self._state.fold, f"batch of step {batch.step} of branch {batch.branch}"
        if batch.branch not in fold.branches or batch.parent_version not in fold.versions:
            raise StoreError(f"{where}: there is no such branch, or no version {batch.parent_version}")
        if any(max(row.episode_lsn, row.reward_lsn, row.lease) >= mark for row in batch.rows):
            raise StoreError(f"{where}: it names what is not in the data log")
        if any(min(row.episode_lsn, row.reward_lsn) < self._state.kept_lsn for row in batch.rows):
            raise StoreError(f"{where}: it names what was trimmed")
        for lease in {row.lease for row in batch.rows}:
            group = fold.groups.get(lease)
            if group is not None and group.stage is not Stage.ENDED:
                raise StoreError(f"{where}: group {lease} has not ended: a batch of another branch may still read it")

    def _append(self, record: ControlRecord) -> int:
        with self._state.lock:
            future = self._state.control.submit([record])
        return self._state.finish(future)[0]

    def _prioritise(self, record: Priority) -> int:
        """Experience's own log keeps it: it comes after the groups that it names and is trimmed with them."""
        with self._state.lock:
            self._check_priority(record)
            future = self._state.data.submit([record])
        (lsn,) = self._state.finish(future)
        self._window.prioritise(record)
        return lsn

    def _check_priority(self, record: Priority) -> None:
        if len(record.leases) != len(record.priorities):
            raise StoreError(f"{len(record.leases)} leases have {len(record.priorities)} priorities")
        if wrong := [priority for priority in record.priorities if not 0 <= priority <= HIGHEST_PRIORITY]:
            raise StoreError(f"{wrong[0]} is no priority: they are from 0 to {HIGHEST_PRIORITY}")
        if unknown := [one for one in record.leases if not self._is_lease(one)]:
            raise StoreError(f"{unknown[0]} is no lease of this store")

    def _is_lease(self, lsn: int) -> bool:
        """Whether there is such a lease, or was: of what was trimmed nobody knows."""
        fold = self._state.fold
        return 0 <= lsn < fold.trimmed_lsn or fold.groups.get(lsn) is not None

    def _check_session(self, session: int) -> None:
        newest = self._state.fold.sessions
        if session not in newest.values():
            raise FencedError(f"session {session} is over: the newest ones are {newest}")

    def _find_same(self, record: ControlRecord) -> int | None:
        """LSN of the same decision made before. Raises StoreError for one that cannot be made."""
        fold = self._state.fold
        if isinstance(record, Skip):
            return fold.skip_lsns.get(record.batch_lsn)
        if not isinstance(record, Version):
            return None
        known = fold.version_lsns.get((record.branch, record.step, record.root_hash))
        if known is not None:
            return known
        if record.version <= fold.newest_version:
            raise StoreError(
                f"version {record.version} is not above {fold.newest_version}: numbers rise and are never used again"
            )
        if record.parent >= 0 and record.parent not in fold.versions:
            raise StoreError(f"version {record.version}: there is no parent version {record.parent}")
        return None

    # ------------------------------------------------------------------------------------------ batches

    def _can_cut(self, request: BatchRequest) -> bool:
        if request.parent_version not in self._state.fold.versions:
            raise StoreError(f"batch of step {request.step}: there is no version {request.parent_version}")
        return len(self._find_queue(math.inf)) >= self._count_new(request)

    def _count_new(self, request: BatchRequest) -> int:
        """Groups that no batch had before."""
        return request.num_groups - self._state.config.store.count_replayed(request.num_groups)

    def _find_queue(self, mark: float) -> list[int]:
        """Ready groups below `mark`, first come first, up to the first one with a reward that was corrected since.

        A BATCH may name only what is durable, and whoever reads the log below `mark` is to find the same queue.
        """
        fold, ending, judging = self._state.fold, self._state.ending, self._state.judging
        ready = [
            lease
            for lease in fold.queue()
            if lease not in ending and lease not in judging and fold.groups[lease].ready_lsn < mark
        ]
        return list(takewhile(lambda lease: fold.groups[lease].reward_lsn < mark, ready))

    def _cut(self, request: BatchRequest, mark: int) -> tuple[Batch | None, list[Future[list[int]]]]:
        """Submit the batch with what it drops; where it cannot be filled, what is dropped alone."""
        state, fold, replay = self._state, self._state.fold, self._state.config.replay
        num_new = self._count_new(request)
        choice = self.choose(request, mark, num_groups=num_new)
        if len(choice.leases) < num_new:
            return None, self.close_dropped(choice.dropped, mark=mark)
        fresh = order_rows(fold, choice.leases)
        rows = put_replays(fold, fresh, settings=replay, seed=request.seed, kept_lsn=state.kept_lsn)
        mixed = {row.lease for row in rows if row.replayed}
        batch = Batch(
            branch=request.branch,
            step=request.step,
            parent_version=request.parent_version,
            rows=(*rows, *self._window.draw_locked(request.num_groups, seed=request.seed, step=request.step)),
            zero_spread=find_zero_spread(fold, tuple(lease for lease in choice.leases if lease not in mixed)),
            dropped=choice.dropped,
            seed=request.seed,
            data_lsn=mark,
            control_lsn=state.control.writer.durable_lsn,
            coefficients=dict(request.coefficients),
            remembered=find_successes(fold, fresh, settings=replay),
        )
        return batch, [state.end_locked(batch, leases=[*choice.leases, *(drop.lease for drop in choice.dropped)])]

    def _read_batch(self, lsn: int) -> tuple[int, Batch]:
        ((_, record),) = self._records.read_decisions(lsn, lsn + 1, (Kind.BATCH,))
        assert isinstance(record, Batch)
        return lsn, record
