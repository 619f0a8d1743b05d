"""Means and how sure they are: percentile bootstrap intervals (Efron 1979) over what was drawn independently.

    bootstrap(accuracy_of_each_item)            # over held-out items: says nothing of other data sets or seeds
    bootstrap(score_of_each_seed)               # over seeds of training: says nothing of other data sets
    bootstrap_seeds(score_of_each_seed, item_error=e)   # over both: seeds of training, scored on the same items
    paired_difference(before, after)            # the same items, or the same seeds, under two conditions

Not covered: with fewer than about ten values the interval is too narrow (of three, it covers 95 % in name only: at most
the range of the three), and it knows no values beyond those that were seen.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95
_RESAMPLES = 2_000


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean and its percentile bootstrap interval at CONFIDENCE."""

    mean: float
    low: float
    high: float


def bootstrap(values: NDArray[np.float64], *, seed: int = 0) -> Interval:
    """The mean of values [N] and its interval; NaN values are left out. One value gives an interval of no width."""
    known = values[~np.isnan(values)]
    rows = np.random.default_rng(seed).integers(len(known), size=(_RESAMPLES, len(known)))
    low, high = np.quantile(known[rows].mean(axis=1), [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(mean=float(known.mean()), low=float(low), high=float(high))


def bootstrap_seeds(means: NDArray[np.float64], *, item_error: float, seed: int = 0) -> Interval:
    """The mean of scores [S], one a seed, all on the same items, whose standard error for one seed is `item_error`.

    Seeds are drawn with replacement; the items' error is added to each draw as a normal one, whole: what the items have
    in common is not averaged out by more seeds.
    """
    rng = np.random.default_rng(seed)
    drawn = means[rng.integers(len(means), size=(_RESAMPLES, len(means)))].mean(axis=1)
    drawn = drawn + item_error * rng.standard_normal(_RESAMPLES)
    low, high = np.quantile(drawn, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(mean=float(means.mean()), low=float(low), high=float(high))


def paired_difference(before: NDArray[np.float64], after: NDArray[np.float64], *, seed: int = 0) -> Interval:
    """after - before of the same things [N], each its own control: much narrower than two intervals apart.

    Raises ValueError where the shapes differ.
    """
    if before.shape != after.shape:
        raise ValueError(f"{before.shape} and {after.shape}: two conditions are compared on the same items")
    return bootstrap(after - before, seed=seed)
