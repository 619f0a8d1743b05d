"""Feeds the LMDB index from the fold on a thread of its own, off every caller's path, and lets the fold forget. The
footers of sealed segments (buffers/footers.py) are written on the same thread.

A transaction is synced, so the next one waits as long as the last one took: several records share it, and a kill leaves
little to fold again. (With a pause of three times that, what came meanwhile made the next one so long that the index
fell behind a busy owner by a quarter of a second.)
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from threading import Event, Lock, Thread
from typing import Any

import lmdb

from buffers.fold import Fold
from buffers.folding import load, save_shelves, save_state
from buffers.footers import FooterWriter
from buffers.index import Changes, Index
from contracts.errors import StoreError
from contracts.records import Episode, Record, Task

log = logging.getLogger(__name__)
_REBUILD_BATCH = 10_000  # records in one write while the index is rebuilt
_SHARE = 1  # a write is followed by a pause of this many times what it took
_LEAST_PAUSE_S = 0.02


class Indexer:
    """`fold` and `note` each record, at recovery and later; `start` when recovered; `wake` when some were applied.

    `lock` guards the fold; it is held in `note` and taken for a moment by the thread to copy what changed.
    `sync` makes the data log durable up to an LSN, and says how far it is: nothing past the watermark is indexed.
    """

    def __init__(self, index: Index, *, lock: Lock, sync: Callable[[int], int]) -> None:
        self.fold: Fold = load(index)
        self.lock = lock
        self._index, self._sync = index, sync
        self._footers: FooterWriter | None = None
        self._tasks: list[tuple[str, int]] = []
        self._rows: list[int] = []
        self._num_recalled = 0
        self._awake, self._stopped, self._failed = Event(), Event(), False
        self._writing = Lock()  # cuts are written in their order
        self._thread = Thread(target=self._run, name="indexer", daemon=True)

    @property
    def data_lsn(self) -> int:
        """What lies below in the data log is in the index."""
        return self._index.data_lsn

    def write_footers(self, footers: FooterWriter) -> None:
        """Hand it each record from now on."""
        self._footers = footers

    def recall(self, lsn: int, record: Record) -> None:
        """Fold a record met at recovery."""
        self.fold.apply(lsn, record)
        self.note(lsn, record)
        self._num_recalled += 1
        if self._num_recalled % _REBUILD_BATCH == 0:
            self.flush()
            self._look()

    def start(self) -> None:
        """Bring the index up to the recovered fold, put it in its place, and keep it there."""
        if not self._index.is_published:
            self.flush()
            self._index.publish()
        self._thread.start()
        self.wake()

    def note(self, lsn: int, record: Record) -> None:
        """A record was applied."""
        if self._failed:
            return
        if self._footers is not None:
            self._footers.note(lsn, record)
        if isinstance(record, Episode):
            if record.reward is not None:
                self._rows.append(lsn)
        elif isinstance(record, Task):
            self._tasks.append((record.task_id, lsn))

    def wake(self) -> None:
        if not self._awake.is_set():
            self._awake.set()

    def close(self) -> None:
        """Write what is left and close the index."""
        self._stopped.set()
        self._awake.set()
        self._thread.join()
        self.flush()
        self._look(at_end=True)
        self._index.close()

    def _run(self) -> None:
        while not (self._stopped.is_set() or self._failed):
            self._awake.wait()
            self._awake.clear()
            began = time.monotonic()
            self.flush()
            if self._look():
                self._awake.set()
            self._stopped.wait(max(_LEAST_PAUSE_S, _SHARE * (time.monotonic() - began)))

    def flush(self) -> None:
        """Write what changed, and let the fold forget it.

        Whatever goes wrong ends the index for this owner and no more: the log goes on without it, and no later cut is
        written, which would lack this one.
        """
        with self._writing:
            self._flush()

    def _flush(self) -> None:
        if self._failed:
            return
        try:
            with self.lock:
                changes = self._take()
                noted = [] if self._footers is None else self._footers.take()
            if self._sync(changes.data_lsn) < changes.data_lsn:
                raise StoreError(f"the data log is durable below {changes.data_lsn} only")
            self._index.write(changes)
        except Exception as error:  # noqa: BLE001 - a thread of its own: nobody else would hear of it
            self._failed = True
            if not isinstance(error, StoreError | lmdb.MapFullError | lmdb.DiskError):
                self._index.distrust()
            log.error("the index takes nothing more and is brought up at the next start", extra={"detail": repr(error)})
            return
        with self.lock:
            self._forget(changes)
        if self._footers is not None:
            self._footers.gather(noted)

    def _look(self, *, at_end: bool = False) -> bool:
        """Write footers that are due; whether there are more. What goes wrong costs those who query time, no more."""
        if self._footers is None or self._failed:
            return False
        try:
            return self._footers.look(math.inf if at_end else self._index.data_lsn, at_end=at_end)
        except Exception as error:  # noqa: BLE001 - as above; the next look tries again
            log.warning("a footer was not written", extra={"detail": repr(error)})
            return False

    def _take(self) -> Changes:
        """What changed since the last call."""
        fold = self.fold
        changes = Changes(
            state=save_state(fold),
            data_lsn=fold.data_end,
            control_lsn=fold.control_end,
            shelves=save_shelves(fold),
            tasks=self._tasks,
            rows=self._rows,
        )
        self._tasks, self._rows = [], []
        return changes

    def _forget(self, changes: Changes) -> None:
        shelves: dict[str, Any] = self.fold.shelves
        for name, entries in changes.shelves.items():
            shelves[name].forget(key for key, _ in entries)
