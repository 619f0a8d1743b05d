"""Which groups a learner step reads: the first ready ones, in the order in which they became complete.

A pure function of the log prefix, so that the same prefix gives the same batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from buffers.fold import Fold
from contracts.records import Disposition, Dropped, Row


@dataclass(frozen=True)
class Choice:
    """Groups for one batch, in queue order, and those met on the way that no batch may have."""

    leases: tuple[int, ...]
    dropped: tuple[Dropped, ...]


def choose_first(
    fold: Fold,
    queue: list[int],
    *,
    num_groups: int,
    parent_version: int,
    max_staleness: int,
    with_spread: bool,
    may_gain_spread: Callable[[int], bool] = lambda _: False,
) -> Choice:
    """Up to `num_groups` groups of `queue` that are fresh enough for the child of `parent_version`.

    `with_spread`: those whose returns are all equal are passed over too (DAPO, Yu et al. 2025, eq. 11), unless they
    `may_gain_spread`.
    """
    leases: list[int] = []
    dropped: list[Dropped] = []
    for lease in queue:
        if len(leases) == num_groups:
            break
        fault = find_fault(fold, lease, parent_version=parent_version, max_staleness=max_staleness)
        if fault is None and with_spread and find_zero_spread(fold, (lease,)) and not may_gain_spread(lease):
            fault = Disposition.ZERO_SPREAD
        if fault is None:
            leases.append(lease)
        else:
            dropped.append(Dropped(lease=lease, disposition=fault))
    return Choice(tuple(leases), tuple(dropped))


def find_fault(fold: Fold, lease: int, *, parent_version: int, max_staleness: int) -> Disposition | None:
    """Why a group may not train the child of `parent_version`: STALE, OFF_BRANCH, or None.

    Every version that acted must be an ancestor, so the oldest decides about age and the others about the branch.
    """
    ages = [fold.staleness(parent_version, member.oldest_version) for member in fold.groups[lease].members.values()]
    if None in ages:
        return Disposition.OFF_BRANCH
    return Disposition.STALE if any(age is not None and age > max_staleness for age in ages) else None


def order_rows(fold: Fold, leases: tuple[int, ...]) -> tuple[Row, ...]:
    """The rows of whole groups by (task position, member): the same tasks give the same order, whoever was quicker."""
    groups = sorted((fold.groups[lease] for lease in leases), key=lambda group: group.task.position)
    return tuple(
        Row(episode_lsn=group.lsns[number], reward_lsn=group.members[number].reward_lsn, lease=group.lease)
        for group in groups
        for number in range(group.task.group_size)
    )


def find_zero_spread(fold: Fold, leases: tuple[int, ...]) -> tuple[int, ...]:
    """Those of `leases` whose members all have exactly the same reward. A group of one has no spread to speak of."""
    groups = (fold.groups[lease] for lease in leases)
    return tuple(
        group.lease
        for group in groups
        if group.task.group_size > 1 and len({member.reward for member in group.members.values()}) == 1
    )
