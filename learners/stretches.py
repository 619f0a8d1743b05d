"""From a batch's control episodes to arrays: the stretches of play that a PPO step reads, one behind the other.

Shapes: N environment steps of all stretches; S stretches of T actions each; D numbers of an observation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from contracts.errors import LearnerError
from contracts.records import Batch, Episode, FloatArray, IntArray, StopReason
from learners.advantages import Float64Array, discounted_returns, gae

EPSILON = 1e-8
RETURN_BEFORE = "discounted_before"  # reward part: the discounted return of the lane's episode up to this record
FINISHED, RETURN_SUM, LENGTH_SUM = "finished", "return_sum", "length_sum"  # reward parts: episodes that ended in it


@dataclass(frozen=True, kw_only=True)
class Stretches:
    """Everything of one batch, in the order of its rows."""

    observations: tuple[FloatArray, ...]  # S of [T + 1, D]
    rewards: tuple[Float64Array, ...]  # S of [T]
    discounted: tuple[Float64Array, ...]  # S of [T]: the running discounted return after each reward
    terminated: tuple[bool, ...]
    actions_N: IntArray | FloatArray
    behaviour_N: FloatArray
    stats: dict[str, float]

    @property
    def acted_on(self) -> FloatArray:
        """float32 [N, D]: the observations that an action answered."""
        return np.concatenate([one[:-1] for one in self.observations])


def read_stretches(batch: Batch, episodes: Sequence[Episode], *, discount: float) -> Stretches:
    """Raises LearnerError where batch and episodes do not fit, or an episode is no control episode."""
    if not batch.rows or len(batch.rows) != len(episodes):
        raise LearnerError(f"step {batch.step}: {len(batch.rows)} rows and {len(episodes)} episodes")
    observations: list[FloatArray] = []
    rewards: list[Float64Array] = []
    discounted: list[Float64Array] = []
    terminated: list[bool] = []
    for row, episode in zip(batch.rows, episodes, strict=True):
        if episode.lease != row.lease:
            raise LearnerError(f"step {batch.step}, episode {episode.episode_id}: it is of another group than its row")
        running = episode.reward_parts.get(RETURN_BEFORE, 0.0)
        for step in episode.steps:
            if step.rewards is None or step.observation.ndim != 2 or len(step.observation) != len(step.rewards) + 1:
                raise LearnerError(f"step {batch.step}, episode {episode.episode_id}: it is no control episode")
            observations.append(step.observation.astype(np.float32))
            rewards.append(step.rewards.astype(np.float64))
            discounted.append(discounted_returns(rewards[-1], before=running, discount=discount))
            terminated.append(step.end is StopReason.TERMINATED)
            running = 0.0  # the next stretch begins after a reset
    return Stretches(
        observations=tuple(observations),
        rewards=tuple(rewards),
        discounted=tuple(discounted),
        terminated=tuple(terminated),
        actions_N=np.concatenate([step.action for episode in episodes for step in episode.steps]),
        behaviour_N=np.concatenate([step.log_probs for episode in episodes for step in episode.steps]),
        stats=_describe(episodes, rewards),
    )


def _describe(episodes: Sequence[Episode], rewards: Sequence[Float64Array]) -> dict[str, float]:
    """`reward_mean` is the mean undiscounted return of the environment episodes that ended in the batch; where none
    did, it is left out."""
    sums = {
        part: sum(one.reward_parts.get(part, 0.0) for one in episodes) for part in (FINISHED, RETURN_SUM, LENGTH_SUM)
    }
    steps = sum(map(len, rewards))
    stats = {"episodes": float(len(episodes)), "environment_steps": float(steps), "episodes_finished": sums[FINISHED]}
    if sums[FINISHED]:
        stats["reward_mean"] = sums[RETURN_SUM] / sums[FINISHED]
        stats["episode_steps_mean"] = sums[LENGTH_SUM] / sums[FINISHED]
    assert all(math.isfinite(value) for value in stats.values())
    return stats


def measure_influences(batch: Batch, episodes: Sequence[Episode], *, discount: float) -> Float64Array:
    """How hard each row of a batch pulls at the policy, [rows]: Σ over its steps of |advantage| / N.

    The critic's values are not in the log: the advantage is what followed in the stretch, discounted, less its mean
    over the batch, in deviations (REINFORCE with a constant baseline, Williams 1992). Raises LearnerError.
    """
    stretches = read_stretches(batch, episodes, discount=discount)
    nothing = [np.zeros(len(rewards) + 1) for rewards in stretches.rewards]
    followed = gae(stretches.rewards, nothing, stretches.terminated, discount=discount, gae_lambda=1.0)
    returns_N = np.concatenate(followed)
    pulls_N = np.abs(returns_N - returns_N.mean()) / (returns_N.std() + EPSILON) / len(returns_N)
    owners_N = np.repeat(
        np.arange(len(episodes)), [sum(len(step.log_probs) for step in episode.steps) for episode in episodes]
    )
    return np.bincount(owners_N, weights=pulls_N, minlength=len(episodes)).astype(np.float64)
