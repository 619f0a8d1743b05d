"""What the parts of the store's owner share: the fold, its lock, the ways into both logs, and how leases end.

Every answer is read off the fold, and the fold takes a record in only when it is in the log, as safe as the ack level
says. `lock` guards the fold for microseconds and is never held while a disk is waited for. Records reach a log in the
order in which they were submitted under `lock`, so the fold sees them in LSN order.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from threading import BoundedSemaphore, Condition
from typing import TypeVar

from buffers.addresses import part_of
from buffers.fold import Fold
from buffers.groups import Group, Stage
from buffers.indexing import Indexer
from buffers.leases import Leases
from buffers.log.writer import LogWriter
from buffers.pipeline import Pipeline
from buffers.sampling import find_fault
from configs.schema import RunConfig
from contracts.errors import FencedError
from contracts.records import Batch, Closed, ControlRecord, Disposition, Record

Due = dict[tuple[Disposition, str], list[int]]  # (how, why) → leases that end outside a batch

MAX_WAITING = 8  # callers at once: each holds a thread of its server, and those who append must never lack one

T = TypeVar("T")

TIMED_OUT = "the lease timed out, or its holder attached again"
CANNOT_GO_ON = "its holder is gone, and what there is of it is on another branch or too old"
INVALID = "a member is invalid"
NO_REWARD = "a reward did not come in time"


class StoreState:
    """Methods named `…_locked` are called with `lock` held; `finish` and `sweep` without it."""

    def __init__(
        self, *, data: LogWriter, control: LogWriter, config: RunConfig, index: Indexer, clock: Callable[[], float]
    ) -> None:
        self.lock = index.lock
        self.fold: Fold = index.fold
        self.config, self.clock, self.index = config, clock, index
        self.leases = Leases(timeout_s=config.rollout.lease_timeout_s)
        self.data = Pipeline(data, apply=self._apply_data, durable=config.store.ack == "durable")
        self.control = Pipeline(control, apply=self.fold.apply, durable=True)
        self.trimming_lsn = 0  # what lies below is on its way out
        self.epochs: dict[str, int] = {}  # producer → its epoch
        self.reserved: set[int] = set()  # positions whose TASK is on its way into the log
        self.ending: dict[int, Future[list[int]]] = {}  # leases whose CLOSED or BATCH is on its way
        self.judging: list[int] = []  # leases whose HOLD or REVIEW is on its way: no batch may have them meanwhile
        # Leases that another shard's log may decide about, see buffers/following.py; None: any
        self.promised: set[int] | None = set()
        self.naming: list[Batch] = []  # BATCH records on their way: what they name is needed already
        self._changed = Condition(self.lock)  # something was applied, or the store closes
        self._num_changes = 0
        self._closed = False
        self._places_to_wait = BoundedSemaphore(MAX_WAITING)

    def _apply_data(self, lsn: int, record: Record) -> None:
        self.fold.apply(lsn, record)
        self.index.note(lsn, record)

    @property
    def kept_lsn(self) -> int:
        """What lies below in the data log is gone, or on its way out."""
        return max(self.fold.trimmed_lsn, self.trimming_lsn)

    def finish(self, future: Future[list[int]]) -> list[int]:
        """Wait until an append is safe and let the fold take in all that is; the append's LSNs."""
        error = future.exception()
        if self.data.has_safe or self.control.has_safe:  # else another caller has let the fold take it in
            self._drain()
            self.index.wake()
        if error is not None:
            raise error
        return future.result()

    def ask_until(self, ask: Callable[[], T], *, wait_s: float) -> T:
        """What `ask` gives; an empty answer is asked for again after each change, until `wait_s` is over."""
        deadline = time.monotonic() + wait_s
        seen = self._num_changes
        answer = ask()
        if answer or wait_s <= 0 or not self._places_to_wait.acquire(blocking=False):
            return answer
        try:
            while not answer and (left := deadline - time.monotonic()) > 0:
                with self._changed:
                    while self._num_changes == seen and not self._closed and self._changed.wait(left):
                        continue
                    seen = self._num_changes
                if self._closed:
                    return answer
                answer = ask()
            return answer
        finally:
            self._places_to_wait.release()

    def close(self) -> None:
        """Sync and close both logs; what was on its way is answered. Idempotent."""
        self._closed = True
        self.data.writer.close()
        self.control.writer.close()
        self._drain()

    def _drain(self) -> None:
        with self._changed:
            self.data.drain()
            self.control.drain()
            self._num_changes += 1
            self._changed.notify_all()

    def check_producer_locked(self, producer: str, epoch: int) -> None:
        """Raises FencedError where `epoch` is not the producer's newest with this owner."""
        known = self.epochs.get(producer)
        if known != epoch:
            raise FencedError(f"{producer}: epoch {epoch} is over or unknown (this owner gave {known}); attach again")

    # ------------------------------------------------------------------------------------------ leases that end

    def sweep(self) -> None:
        """Close what ended by itself: leases that timed out or cannot go on, invalid groups, rewards not in time."""
        waiting = self.fold.stages[Stage.PENDING], self.fold.stages[Stage.FAULTY], self.leases.orphans
        if not any(waiting) and not self.leases.is_any_due(self.clock()):
            return  # looked at without the lock: what is due from now on is found by the next call
        with self.lock:
            if not self._find_due_locked(math.inf):
                return
        mark = self.data.writer.sync()  # CLOSED may name only what is durable
        with self.lock:
            due = self._find_due_locked(mark)
            futures = [self.close_locked(leases, how, why, mark=mark) for (how, why), leases in due.items()]
        for future in futures:
            self.finish(future)

    def can_resume_locked(self, group: Group) -> bool:
        """Whether an unfinished lease is worth completing: same branch, and fresh enough for the next batch."""
        head = self.fold.head(self.fold.branch)
        if group.task.branch != self.fold.branch or group.task.payload is not None:
            return False  # a task from outside is completed by whoever brought it, or its place is handed out again
        if not group.members:
            return True
        return head is not None and not find_fault(
            self.fold, group.lease, parent_version=head, max_staleness=self.config.max_staleness
        )

    def close_locked(self, leases: Sequence[int], how: Disposition, why: str, *, mark: int) -> Future[list[int]]:
        """Submit a CLOSED; `mark`: durable watermark of the data log, above all that the leases have brought."""
        closed = Closed(leases=tuple(leases), disposition=how, reason=why, data_lsn=mark)
        return self.end_locked(closed, leases=leases)

    def end_locked(self, *records: ControlRecord, leases: Sequence[int]) -> Future[list[int]]:
        """Submit, as one, records that take `leases` out of the queue; until then nothing else may take them."""

        def settle(lsns: list[int] | None) -> None:
            for batch in batches:
                self.naming.remove(batch)
            for lease in leases:
                del self.ending[lease]
                if lsns is not None:
                    self.leases.release(lease)

        batches = [part_of(record, shard=0) for record in records if isinstance(record, Batch)]
        future = self.control.submit(records, settle=settle)
        self.naming += batches
        self.ending.update(dict.fromkeys(leases, future))
        return future

    def _find_due_locked(self, mark: float) -> Due:
        """Leases to close, of those that lie wholly below `mark` and have no episode on its way."""
        groups, stages = self.fold.groups, self.fold.stages
        stuck = [lease for lease in self.leases.orphans if not self.can_resume_locked(groups[lease])]
        now = time.time()
        overdue = [lease for lease in stages[Stage.PENDING] if _is_overdue(groups[lease], now)]
        due: Due = {}
        for how, why, leases in (
            (Disposition.ABANDONED, TIMED_OUT, self.leases.find_expired(self.clock())),
            (Disposition.ABANDONED, CANNOT_GO_ON, stuck),
            (Disposition.QUARANTINED, INVALID, stages[Stage.FAULTY]),
            (Disposition.REWARD_TIMEOUT, NO_REWARD, overdue),
        ):
            found = [
                lease
                for lease in leases
                if lease not in self.ending and not self.leases.is_awaited(lease) and groups[lease].last_lsn < mark
            ]
            if found:
                due[how, why] = sorted(found)
        return due


def _is_overdue(group: Group, now: float) -> bool:
    """Whether a reward that is missing will not be waited for any longer. `now`: wall time (s)."""
    return any(
        member.reward is None and member.deadline is not None and member.deadline < now
        for member in group.members.values()
    )
