"""Samples episodes again and again: uniformly, by task, or by priority; on the owner's node, without asking it.

    rows   the episodes that came with a reward, in log order; late ones are passed over
    draw   a function of (the rows below `data_lsn`, priorities, seed): the same ones give the same rows in any process

A row is a place in that order. Memory of a reader: 8 bytes a row, and 8 more once priorities are set; the payloads are
mapped, not read. Not covered: episodes whose reward came later (FEEDBACK), and what other nodes hold.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self, cast
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

from buffers.codec import decode
from buffers.index import ROWS_A_BLOCK, IndexReader
from buffers.log.identity import read_identity
from buffers.log.mapped import MappedLog
from buffers.log.readers import reading
from buffers.sum_tree import SumTree, importance_weights
from contracts.errors import StoreError, StoreIdentityError
from contracts.records import Episode, Kind

IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class Draw:
    """`rows` [N] may be given new priorities; `weights` [N] correct for their being drawn more often, at most 1."""

    rows: IntArray
    lsns: IntArray
    weights: NDArray[np.float64]


class ReplayReader:
    """The rows as of the last `refresh`. For one thread. Made by `open`."""

    def __init__(self, folder: Path, *, uuid: UUID) -> None:
        self._folder = folder
        self._index = IndexReader(folder / "index")
        self._log = MappedLog(folder / "data", uuid=uuid)
        self._lsns = np.zeros(0, dtype=np.int64)
        self._late = np.zeros(0, dtype=np.int64)  # rows
        self._tree: SumTree | None = None
        self._first = 0  # rows below it were trimmed
        self.num_rows = 0
        self.refresh()

    @classmethod
    def open(cls, folder: Path, *, uuid: UUID | str | None = None) -> ReplayReader:
        """Raises StoreIdentityError where `folder` holds no store, or another than `uuid`; StoreError without index."""
        found = read_identity(folder)
        if uuid is not None and UUID(str(uuid)) != found:
            raise StoreIdentityError(f"{folder} holds store {found}, not {uuid}, which was asked for")
        return cls(folder, uuid=found)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._index.close()

    def refresh(self) -> None:
        """Take in what the index got since. It holds nothing that is not durable, so the log is looked at after it."""
        blocks, num_rows, late = self._index.read_rows(since=self.num_rows)
        with reading(self._folder):
            self._log.refresh()
            self._log.map_all()  # what is mapped stays readable when it is trimmed
        if num_rows > self.num_rows:
            kept = self.num_rows - self.num_rows % ROWS_A_BLOCK
            new = np.frombuffer(b"".join(blocks), dtype="<i8")
            if num_rows > len(self._lsns):
                grown = np.zeros(num_rows + num_rows // 8, dtype=np.int64)
                grown[:kept] = self._lsns[:kept]
                self._lsns = grown
            self._lsns[kept:num_rows] = new[: num_rows - kept]
            self.num_rows = num_rows
        lsns = np.fromiter(sorted(late), dtype=np.int64)
        places = np.searchsorted(self._lsns[:num_rows], lsns)
        places = places[places < num_rows]
        self._late = places[np.isin(self._lsns[places], lsns)]
        before, self._first = self._first, int(np.searchsorted(self._lsns[:num_rows], self._log.first_lsn))
        if self._tree is not None:  # what was trimmed, and what was erased or came late
            gone = np.concatenate([np.arange(before, self._first), self._late])
            self._tree.set(gone, np.zeros(len(gone), dtype=np.int64))

    # ------------------------------------------------------------------------------------------ drawing

    def draw_uniform(self, num: int, *, seed: int, data_lsn: int | None = None) -> Draw:
        """`num` rows with replacement, of those below `data_lsn` (None: all). Raises StoreError where there is none."""
        num_rows = self._count(data_lsn)
        rng = np.random.default_rng(seed)
        rows = rng.integers(self._first, num_rows, size=num)
        while len(self._late) and (late := np.isin(rows, self._late)).any():
            rows[late] = rng.integers(self._first, num_rows, size=int(late.sum()))
        return Draw(rows, self._lsns[rows], np.ones(num))

    def draw_by_priority(self, num: int, *, seed: int, beta: float) -> Draw:
        """`num` rows in proportion to their priorities (Schaul et al. 2016). Raises StoreError where all are 0."""
        tree = self._tree
        total = 0 if tree is None else tree.total
        if tree is None or total == 0:
            raise StoreError("every priority is 0: set some first")
        rows = tree.sample(num, rng=np.random.default_rng(seed))
        num_rows = self.num_rows - len(self._late)
        weights = importance_weights(tree.priorities(rows), total=total, num_rows=num_rows, beta=beta)
        return Draw(rows, self._lsns[rows], weights)

    def draw_by_task(self, num: int, *, seed: int, tasks: Sequence[Sequence[int]]) -> Draw:
        """As many rows of each task as of any other, up to one. `tasks`: the rows of each."""
        usable = [np.setdiff1d(rows, self._late) for rows in tasks]
        usable = [rows[rows >= self._first] for rows in usable]
        usable = [rows for rows in usable if len(rows)]
        if not usable:
            raise StoreError("no task has a row that may be drawn")
        rng = np.random.default_rng(seed)
        turns = np.resize(rng.permutation(len(usable)), num)
        rows = np.array([rng.choice(usable[turn]) for turn in turns], dtype=np.int64)
        return Draw(rows, self._lsns[rows], np.ones(num))

    def set_priorities(self, rows: IntArray, priorities: IntArray) -> None:
        """Integers, not negative. Late rows keep 0, and those that were trimmed."""
        if self._tree is None:
            self._tree = SumTree(self.num_rows)
        priorities = np.where((rows < self._first) | np.isin(rows, self._late), 0, priorities)
        self._tree.set(rows, priorities)

    # ------------------------------------------------------------------------------------------ reading

    def payloads(self, lsns: IntArray) -> list[memoryview]:
        """The records' bytes (buffers/codec.py), mapped. Raises StoreError where one was trimmed."""
        return self._log.payloads(lsns)

    def episodes(self, lsns: IntArray) -> list[Episode]:
        return [cast(Episode, decode(Kind.EPISODE, bytes(payload))) for payload in self.payloads(lsns)]

    def _count(self, data_lsn: int | None) -> int:
        """Rows below `data_lsn`; one of them at least may be drawn."""
        num_rows = self.num_rows if data_lsn is None else int(np.searchsorted(self._lsns[: self.num_rows], data_lsn))
        num_late = len(self._late) and int(((self._late >= self._first) & (self._late < num_rows)).sum())
        if num_rows - self._first <= num_late:
            raise StoreError("there is no row to draw: no episode with a reward that is not late")
        return num_rows
