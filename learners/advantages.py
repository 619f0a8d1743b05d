"""Generalised advantage estimation over stretches of play (Schulman et al. 2016, eq. 16), and running moments.

Shapes: S stretches; T actions of one stretch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float64Array = NDArray[np.float64]


def gae(
    rewards: Sequence[Float64Array],
    values: Sequence[Float64Array],
    terminated: Sequence[bool],
    *,
    discount: float,
    gae_lambda: float,
) -> list[Float64Array]:
    """Advantages [T] of each stretch. `values` [T + 1]: the critic at every observation, the one after the last action
    included; it counts nothing where the stretch terminated, and stands for the rest of the episode where it was
    truncated or goes on later (Pardo et al. 2018, "Time limits in reinforcement learning")."""
    longest = max((len(one) for one in rewards), default=0)
    num = len(rewards)
    # From the back, all stretches at once: places before a short stretch's start stay untouched.
    deltas_ST = np.zeros((num, longest))
    for s, (reward, value) in enumerate(zip(rewards, values, strict=True)):
        following = value[1:].copy()
        if terminated[s] and len(following):
            following[-1] = 0.0
        start = longest - len(reward)
        deltas_ST[s, start:] = reward + discount * following - value[:-1]
    advantages_ST, running_S = np.zeros((num, longest)), np.zeros(num)
    for t in range(longest - 1, -1, -1):
        running_S = deltas_ST[:, t] + discount * gae_lambda * running_S
        advantages_ST[:, t] = running_S
    return [advantages_ST[s, longest - len(reward) :] for s, reward in enumerate(rewards)]


def discounted_returns(rewards: Float64Array, *, before: float, discount: float) -> Float64Array:
    """R_t = discount · R_{t-1} + r_t, [T]; `before` is R just before the first reward."""
    returns = np.empty_like(rewards)
    running = before
    for t, reward in enumerate(rewards):
        running = discount * running + reward
        returns[t] = running
    return returns


@dataclass(frozen=True, kw_only=True)
class Moments:
    """Mean and variance of everything seen so far, merged batch by batch (Chan, Golub and LeVeque 1983)."""

    mean: Float64Array
    variance: Float64Array
    count: float

    @classmethod
    def of_nothing(cls, *shape: int) -> Moments:
        return cls(mean=np.zeros(shape), variance=np.ones(shape), count=0.0)

    def merge(self, values: Float64Array) -> Moments:
        """With the rows of `values` [N, ...] seen too."""
        num = float(len(values))
        if num == 0:
            return self
        mean, variance, total = values.mean(axis=0), values.var(axis=0), self.count + num
        delta = mean - self.mean
        squares = self.variance * self.count + variance * num + delta**2 * (self.count * num / total)
        return Moments(mean=self.mean + delta * (num / total), variance=squares / total, count=total)
