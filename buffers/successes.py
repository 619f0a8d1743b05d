"""Success replay: what of each task went well is kept by name, and put where a whole group failed.

    a batch is cut ─► groups whose rewards are low and alike get one stored success each, in their first member's place
                 └──► its fresh successes are remembered, the newest eight of each task (replayed ones not again)

Both are written down in BATCH (`Row.replayed`, `remembered`), so the store is a fold over BATCH records and a replay of
the run reads the same rows. The rule and its numbers: Lu et al. 2025, "ARPO: End-to-end policy optimization for GUI
agents with experience replay".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from buffers.fold import Fold
from buffers.groups import Group
from configs.schema import Replay
from contracts.records import Row


def find_replay(fold: Fold, group: Group, *, settings: Replay, seed: int, kept_lsn: int) -> Row | None:
    """The stored success that goes in the place of the group's first member; None: it is left as it is.

    One of those stored for its task that the log still has (from `kept_lsn` on), uniformly, drawn from `seed` and the
    lease alone.
    """
    if not settings.enabled:
        return None
    rewards = np.array([member.reward for _, member in sorted(group.members.items())], dtype=np.float64)
    if not (rewards.std() < settings.trigger_std and rewards.mean() < settings.trigger_mean):
        return None
    stored = [one for one in fold.successes.get(group.task.task_id) or () if one[0] >= kept_lsn]
    if not stored:
        return None
    episode_lsn, reward_lsn = stored[int(np.random.default_rng((seed, group.lease)).integers(len(stored)))]
    return Row(episode_lsn=episode_lsn, reward_lsn=reward_lsn, lease=group.lease, replayed=True)


def put_replays(fold: Fold, rows: Sequence[Row], *, settings: Replay, seed: int, kept_lsn: int) -> tuple[Row, ...]:
    """`rows`, whole groups, with replayed ones in their places."""
    replays = {
        lease: find_replay(fold, fold.groups[lease], settings=settings, seed=seed, kept_lsn=kept_lsn)
        for lease in _leases(rows)
    }
    changed = []
    for row in rows:
        replayed = replays.pop(row.lease, None)  # a group's first row
        changed.append(row if replayed is None else replace(replayed, weight=row.weight))
    return tuple(changed)


def find_successes(fold: Fold, rows: Sequence[Row], *, settings: Replay) -> tuple[Row, ...]:
    """Those of the fresh `rows`, whole groups, that are to be remembered, in their order."""
    if not settings.enabled:
        return ()
    wanted = settings.source == "success"
    return tuple(row for row in rows if (_reward(fold, row) > settings.min_reward) is wanted)


def _leases(rows: Sequence[Row]) -> list[int]:
    return list(dict.fromkeys(row.lease for row in rows))


def _reward(fold: Fold, row: Row) -> float:
    group = fold.groups[row.lease]
    (reward,) = (group.members[number].reward for number, lsn in group.lsns.items() if lsn == row.episode_lsn)
    assert reward is not None  # the group was ready
    return reward
