"""Which steps lead to a version: a log may hold several branches, and each goes on from a version of another one.

branch 0   1 ── 2 ── 3 ── 4 ── 5
branch 1             └── 4'── 5'        BRANCH(branch=1, parent_branch=0, from_version=that of step 3)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from contracts.records import Batch, Branch, Checkpoint, ControlRecord, Version

TRUNK = 0  # the branch that a run begins with


@dataclass(frozen=True)
class Ancestry:
    """The steps up to the head of `branch`. `stretches`: branch → (after this step, up to this one)."""

    branch: int
    stretches: Mapping[int, tuple[int, float]]

    @classmethod
    def of(cls, records: Sequence[tuple[int, ControlRecord]], *, branch: int | None = None) -> Ancestry:
        """Of `branch`; None: the newest one that the log has."""
        branches = {one.branch: one for _, one in records if isinstance(one, Branch)}
        steps = {one.version: one.step for _, one in records if isinstance(one, Version)} if branches else {}
        newest = next(reversed(branches), TRUNK)
        wanted = newest if branch is None else branch
        stretches: dict[int, tuple[int, float]] = {}
        at, end = wanted, math.inf
        while at in branches:
            fork = steps[branches[at].from_version]
            stretches[at] = (fork, end)
            at, end = branches[at].parent_branch, min(end, fork)
        return cls(wanted, {**stretches, at: (-1, end)})

    def has(self, record: Batch | Version | Checkpoint) -> bool:
        """A checkpoint at the fork is of both branches."""
        after, end = self.stretches.get(record.branch, (math.inf, -1))
        return after < record.step <= end or (isinstance(record, Checkpoint) and after == record.step <= end)
