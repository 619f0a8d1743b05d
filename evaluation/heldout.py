"""Accuracy on held-out items: which completions to ask for, and what their verdicts say.

    trials = plan(num_items=512, samples=4)             # ask an engine for these, in this order
    scores = score(trials, verdicts)                    # {"sampled_accuracy": 0.41, "greedy_accuracy": 0.62, ...}

Accuracy is the share of completions that the data set's own verifier calls exactly right, whatever reward training
uses. Intervals resample items, not completions: samples of one item are not independent. They say nothing of other data
sets or other seeds of training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from contracts.protocols import Verdict

METRIC = "sampled_accuracy"  # the one that `held_out.metric` names
CONFIDENCE = 0.95
_RESAMPLES = 2_000


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One completion to ask for: `sample` at temperature 1, or None for the greedy one."""

    index: int  # of the held-out item
    sample: int | None

    @property
    def temperature(self) -> float:
        return 0.0 if self.sample is None else 1.0


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean and its percentile bootstrap interval (Efron 1979) at CONFIDENCE."""

    mean: float
    low: float
    high: float


def plan(*, num_items: int, samples: int) -> list[Trial]:
    """`samples` completions at temperature 1 and one greedy one for each item."""
    return [Trial(index=i, sample=sample) for i in range(num_items) for sample in (*range(samples), None)]


def score(trials: Sequence[Trial], verdicts: Sequence[Verdict]) -> dict[str, float]:
    """Both accuracies, the sampled one's interval, the mean training reward, and how many trials got no verdict.

    A trial whose environment failed is in no mean: it was not answered wrongly. Raises ValueError where none is left.
    """
    sampled = item_means(trials, verdicts, greedy=False)
    greedy = item_means(trials, verdicts, greedy=True)
    interval = bootstrap(sampled)
    rewards = [verdict.reward for verdict in verdicts if verdict.reward is not None]
    return {
        METRIC: interval.mean,
        "sampled_accuracy_low": interval.low,
        "sampled_accuracy_high": interval.high,
        "greedy_accuracy": float(np.nanmean(greedy)),
        "reward_mean": float(np.mean(rewards)),
        "unscored": float(len(verdicts) - len(rewards)),
    }


def item_means(trials: Sequence[Trial], verdicts: Sequence[Verdict], *, greedy: bool) -> NDArray[np.float64]:
    """Share of exactly right completions of each item, float64 [items]; NaN where none got a verdict."""
    num_items = 1 + max((trial.index for trial in trials), default=-1)
    right, given = np.zeros(num_items), np.zeros(num_items)
    for trial, verdict in zip(trials, verdicts, strict=True):
        if verdict.reward is not None and (trial.sample is None) is greedy:
            right[trial.index] += verdict.parts["exact"]
            given[trial.index] += 1
    if not given.any():
        raise ValueError(f"none of {len(trials)} held-out trials ({'greedy' if greedy else 'sampled'}) got a verdict")
    right[given == 0] = np.nan
    means: NDArray[np.float64] = right / np.maximum(given, 1.0)
    return means


def bootstrap(means: NDArray[np.float64], *, seed: int = 0) -> Interval:
    """The mean over items [items] and its interval; NaN items are left out. One item gives an interval of no width."""
    known = means[~np.isnan(means)]
    rows = np.random.default_rng(seed).integers(len(known), size=(_RESAMPLES, len(known)))
    low, high = np.quantile(known[rows].mean(axis=1), [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(mean=float(known.mean()), low=float(low), high=float(high))


def paired_difference(before: NDArray[np.float64], after: NDArray[np.float64], *, seed: int = 0) -> Interval:
    """after - before on the same items [items], each item its own control: much narrower than two intervals apart."""
    if before.shape != after.shape:
        raise ValueError(f"{before.shape} and {after.shape}: two versions are compared on the same items")
    return bootstrap(after - before, seed=seed)
