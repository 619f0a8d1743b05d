"""Groups that a learner is given once more: of those that the newest steps read, uniformly or by priority.

    BATCH of the last `store.replayed_window` steps of the branch, less skipped ones ─┬─► candidates ─► draw ─► Row
    PRIORITY ─────────────────────────────────────────────────────────────────────────┘

A draw is a function of the BATCH and PRIORITY records before it and the batch's seed: who reads the log draws the same.
Groups without spread teach nothing and are no candidates. What is drawn by priority counts by importance weights
(Schaul et al. 2016, "Prioritized experience replay", section 3.4); new groups count 1. Staleness bounds new groups
alone: what is drawn again is as old as the window allows, and learner.importance_cap corrects for that.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import cast

import numpy as np

from buffers.reading import Records
from buffers.state import StoreState
from buffers.sum_tree import SumTree, importance_weights
from configs.schema import Store
from contracts.records import Batch, Kind, Priority, Row

HIGHEST_PRIORITY = (1 << 31) - 1


@dataclass
class Candidate:
    """A group as a batch read it. priority None: no PRIORITY names it."""

    rows: tuple[Row, ...]
    priority: int | None = None

    @property
    def lease(self) -> int:
        return self.rows[0].lease

    @property
    def first_lsn(self) -> int:
        """Nothing of it lies below."""
        return min(min(row.lease, row.episode_lsn, row.reward_lsn) for row in self.rows)


def list_candidates(batch: Batch) -> list[Candidate]:
    """The groups that a batch was the first to read, in its order."""
    groups = (tuple(rows) for _, rows in groupby(batch.rows, key=lambda row: row.lease))
    return [
        Candidate(rows)
        for rows in groups
        if rows[0].lease not in batch.zero_spread and not all(row.replayed for row in rows)
    ]


def draw(candidates: Sequence[Candidate], num: int, *, settings: Store, seed: Sequence[int]) -> tuple[Row, ...]:
    """The rows of `num` different candidates, or of as many as there are, in the order in which they were drawn."""
    if settings.sampler == "uniform":
        rng = np.random.default_rng(seed)
        places = rng.permutation(len(candidates))[:num]
        chosen = [(candidates[place], 1.0) for place in places.tolist()]
    else:
        chosen = _draw_by_priority(candidates, num, beta=settings.importance_exponent, seed=seed)
    return tuple(
        replace(row, weight=row.weight * weight, replayed=True)
        for candidate, weight in chosen
        for row in candidate.rows
    )


def _draw_by_priority(
    candidates: Sequence[Candidate], num: int, *, beta: float, seed: Sequence[int]
) -> list[tuple[Candidate, float]]:
    """(candidate, importance weight). Weights are those of a draw with replacement, over their largest."""
    highest = max([1, *(one.priority for one in candidates if one.priority is not None)])
    priorities = np.array([highest if one.priority is None else one.priority for one in candidates], dtype=np.int64)
    tree, rng = SumTree(len(candidates)), np.random.default_rng(seed)
    tree.set(np.arange(len(candidates)), priorities)
    total, places = tree.total, list[int]()
    while len(places) < num and tree.total:
        (place,) = tree.sample(1, rng=rng)
        tree.set(np.array([place]), np.zeros(1, dtype=np.int64))
        places.append(int(place))
    if not places:
        return []
    weights = importance_weights(priorities[places], total=total, num_rows=len(candidates), beta=beta)
    return [(candidates[place], float(weight)) for place, weight in zip(places, weights, strict=True)]


class Window:
    """What the store's decider draws from; called by it alone, one call at a time. `floor` may be read by anyone."""

    def __init__(self, state: StoreState, *, records: Records) -> None:
        self._state, self._records, self._settings = state, records, state.config.store
        self._steps: dict[int, tuple[int, list[Candidate]]] = {}  # BATCH LSN → its step, what may be drawn of it
        self.floor: float = math.inf if self._settings.sampler == "fifo" else 0  # what lies above may be drawn

    def load(self, *, branch: int, step: int) -> None:
        """Have what the batch of this step may draw from. Reads the log: not with the state's lock held."""
        if self._settings.sampler == "fifo":
            return
        with self._state.lock:
            wanted = self._find_batches_locked(branch, step)
        fresh = {lsn: self._read(lsn) for lsn in wanted if lsn not in self._steps}
        with self._state.lock:
            for lsn, batch in fresh.items():
                self._steps[lsn] = batch.step, self._admit_locked(list_candidates(batch))
        self._steps = {lsn: self._steps[lsn] for lsn in wanted}
        self.floor = min((one.first_lsn for one in self._candidates()), default=math.inf)

    def draw_locked(self, num_groups: int, *, seed: int, step: int) -> tuple[Row, ...]:
        """Rows for a batch of `num_groups` in all."""
        num = self._settings.count_replayed(num_groups)
        if not num:
            return ()
        candidates = [one for one in self._candidates() if one.first_lsn >= self._state.kept_lsn]
        return draw(candidates, num, settings=self._settings, seed=(seed, step))

    def prioritise(self, record: Priority) -> None:
        """It is in the log."""
        given = dict(zip(record.leases, record.priorities, strict=True))
        for _, candidates in self._steps.values():
            for candidate in candidates:
                candidate.priority = given.get(candidate.lease, candidate.priority)

    def _candidates(self) -> Iterable[Candidate]:
        """Oldest step first."""
        skipped = self._state.fold.skip_lsns
        for lsn in sorted(self._steps):
            if lsn not in skipped:
                yield from self._steps[lsn][1]

    def _find_batches_locked(self, branch: int, step: int) -> list[int]:
        """LSNs of the batches of the steps before, along the branch."""
        fold, found = self._state.fold, list[int]()
        for before in range(step - 1, max(0, step - 1 - self._settings.replayed_window), -1):
            while (made := fold.branches.get(branch)) is not None and before <= fold.versions[made.from_version].step:
                branch = made.parent_branch
            lsn = fold.batch_lsns.get((branch, before))
            if lsn is not None:
                found.append(lsn)
        return found

    def _read(self, lsn: int) -> Batch:
        ((_, record),) = self._records.read_decisions(lsn, lsn + 1, (Kind.BATCH,))
        return cast(Batch, record)

    def _admit_locked(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """Those that were not erased, with their priorities."""
        fold = self._state.fold
        kept = [one for one in candidates if not any(row.episode_lsn in fold.late for row in one.rows)]
        for candidate in kept:
            candidate.priority = fold.priorities.get(candidate.lease)
        return kept
