"""Feeds the LMDB index from the fold on a thread of its own, off every caller's path."""

from __future__ import annotations

import logging
from threading import Event, Lock, Thread

import lmdb

from buffers.fold import Fold
from buffers.index import Changes, Index, describe_group, describe_producer
from contracts.records import Episode, Record

log = logging.getLogger(__name__)
RECALL_BATCH = 10_000  # episodes in one write while the index is rebuilt


class Indexer:
    """`recall` each data record at recovery, `start`, then `note` each new one and `wake` when some were applied.

    `lock` guards the fold; it is held in `note` and taken for a moment by the thread to copy what changed.
    """

    def __init__(self, index: Index, *, fold: Fold, lock: Lock) -> None:
        self.fold, self.lock = fold, lock
        self._index = index
        self._episodes: list[tuple[str, int]] = []
        self._awake, self._stopped, self._failed = Event(), Event(), False
        self._thread = Thread(target=self._run, name="indexer", daemon=True)

    @property
    def data_lsn(self) -> int:
        """What lies below in the data log is in the index."""
        return self._index.data_lsn

    def recall(self, lsn: int, record: Record) -> None:
        """A record met at recovery."""
        if lsn < self._index.data_lsn:
            return
        self.note(lsn, record)
        if len(self._episodes) >= RECALL_BATCH:  # not counted as indexed yet: the groups are still to come
            episodes, self._episodes = self._episodes, []
            self._write(Changes(episodes, (), (), self._index.data_lsn, self._index.control_lsn))

    def start(self) -> None:
        """Bring the index up to the recovered fold, put it in its place, and keep it there."""
        index, fold = self._index, self.fold
        fold.touched = {
            group.lease
            for group in fold.groups.values()
            if group.data_lsn >= index.data_lsn or group.control_lsn >= index.control_lsn
        }
        self._write(self._take())
        index.publish()
        self._thread.start()

    def note(self, lsn: int, record: Record) -> None:
        """A record was applied."""
        if isinstance(record, Episode) and not self._failed:
            self._episodes.append((record.episode_id, lsn))

    def wake(self) -> None:
        self._awake.set()

    def close(self) -> None:
        """Write what is left and close the index."""
        self._stopped.set()
        self._awake.set()
        self._thread.join()
        self._write(self._take())
        self._index.close(trusted=not self._failed)

    def _run(self) -> None:
        while not (self._stopped.is_set() or self._failed):
            self._awake.wait()
            self._awake.clear()
            with self.lock:
                changes = self._take()
            self._write(changes)

    def _write(self, changes: Changes) -> None:
        """A full map or disk, or damage, ends the index for this owner and no more: the log goes on without it."""
        if self._failed:
            return
        try:
            self._index.write(changes)
        except lmdb.Error as error:
            self._failed = True
            log.error(
                "the index takes nothing more and is built again at the next start", extra={"detail": repr(error)}
            )

    def _take(self) -> Changes:
        """What changed since the last call."""
        fold, episodes = self.fold, self._episodes
        groups = [describe_group(fold.groups[lease]) for lease in sorted(fold.touched)]
        producers = [describe_producer(name, producer) for name, producer in fold.producers.items()]
        self._episodes, fold.touched = [], set()
        return Changes(episodes, groups, producers, fold.data_end, fold.control_end)
