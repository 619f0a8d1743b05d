"""How many tasks may be handed out now, and which. The queue is bounded here, never where experience is appended.

async   groups outstanding, and one more batch for each decision on its way to the engines,
        stay below (max_staleness + 1) × new groups of a step (all of them, unless store.sampler learns from some again)
sync    exactly the new groups of a step, once the engines have the newest version
both    never more than the remaining steps can use
        groups that wait for a reward are not counted: they may take hours. They have a bound of their own
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from itertools import chain, islice

from buffers.fold import Fold
from configs.schema import RunConfig


def is_open(fold: Fold, config: RunConfig) -> bool:
    """Whether anything may be handed out: engines serve a version and, in sync mode, the newest one."""
    if fold.served < 0:
        return False
    return config.mode == "async" or not fold.num_unsettled(fold.branch)


def count_admissible(fold: Fold, config: RunConfig, *, num_reserved: int) -> int:
    """How many more groups may be handed out; `num_reserved` are on their way into the log."""
    per_step = config.new_groups_per_step
    outstanding = fold.num_outstanding + num_reserved
    remaining = (config.steps - fold.last_step(fold.branch)) * per_step - outstanding
    on_the_way = fold.num_unsettled(fold.branch) * per_step
    bound = (config.max_staleness + 1) * per_step - outstanding - on_the_way
    return max(0, min(remaining, bound, config.rollout.max_pending_groups - fold.num_pending))


def choose_positions(
    fold: Fold, config: RunConfig, *, max_tasks: int, reserved: Collection[int], rank: int, world: int
) -> list[int]:
    """Positions to hand out to one asker: abandoned tasks first, then new ones.

    In sync mode `rank` gets its share (position % world) of the step's positions, so that who tries what does not hang
    on who asks first.
    """
    again = (position for position in sorted(fold.to_hand_again) if position not in reserved)
    window = islice(
        chain(again, new_positions(fold, reserved)), count_admissible(fold, config, num_reserved=len(reserved))
    )
    mine = (position for position in window if is_share(position, config, rank=rank, world=world))
    return list(islice(mine, max_tasks))


def is_share(position: int, config: RunConfig, *, rank: int, world: int) -> bool:
    """Whether an asker of this rank may have the task at `position`."""
    return config.mode == "async" or position % world == rank


def new_positions(fold: Fold, reserved: Collection[int]) -> Iterator[int]:
    """Positions that nobody was handed, rising without end."""
    position = fold.frontier
    while True:
        if position not in fold.ahead and position not in reserved:
            yield position
        position += 1
