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
from evaluation.intervals import Interval, bootstrap

METRIC = "sampled_accuracy"  # the one that `held_out.metric` names
GREEDY = "greedy_accuracy"


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One completion to ask for: `sample` at temperature 1, or None for the greedy one."""

    index: int  # of the held-out item
    sample: int | None

    @property
    def temperature(self) -> float:
        return 0.0 if self.sample is None else 1.0


def plan(*, num_items: int, samples: int) -> list[Trial]:
    """`samples` completions at temperature 1 and one greedy one for each item."""
    return [Trial(index=i, sample=sample) for i in range(num_items) for sample in (*range(samples), None)]


def score(trials: Sequence[Trial], verdicts: Sequence[Verdict]) -> dict[str, float]:
    """Both accuracies, the sampled one's interval, the mean training reward, and how many trials got no verdict; with
    several samples an item, pass@k and its interval too.

    A trial whose environment failed is in no mean: it was not answered wrongly. Raises ValueError where none is left.
    """
    sampled = item_means(trials, verdicts, greedy=False)
    greedy = item_means(trials, verdicts, greedy=True)
    interval = bootstrap(sampled)
    rewards = [verdict.reward for verdict in verdicts if verdict.reward is not None]
    scores = {
        METRIC: interval.mean,
        "sampled_accuracy_low": interval.low,
        "sampled_accuracy_high": interval.high,
        GREEDY: float(np.nanmean(greedy)),
        "reward_mean": float(np.mean(rewards)),
        "unscored": float(len(verdicts) - len(rewards)),
    }
    if max(trial.sample or 0 for trial in trials) > 0:
        for k, one in pass_at_k(trials, verdicts).items():
            scores |= {f"pass@{k}": one.mean, f"pass@{k}_low": one.low, f"pass@{k}_high": one.high}
    return scores


def pass_at_k(trials: Sequence[Trial], verdicts: Sequence[Verdict], *, ks: Sequence[int] = ()) -> dict[int, Interval]:
    """Probability that at least one of k samples is exactly right, for `ks`; for none: 1, 2, 4, ... and all samples.

    The unbiased estimate of Chen et al. 2021, eq. 1, of each item, then mean and interval over items. An item of which
    fewer than k samples got a verdict does not count for that k; a k for which no item counts is left out.
    """
    right, given = _counts(trials, verdicts, greedy=False)
    samples = 1 + max((trial.sample for trial in trials if trial.sample is not None), default=0)
    found: dict[int, Interval] = {}
    for k in ks or sorted({1 << power for power in range(samples.bit_length())} | {samples}):
        enough = given >= k
        if enough.any():
            pairs = zip(given[enough].astype(int), right[enough].astype(int), strict=True)
            found[k] = bootstrap(np.array([chance_of_one(int(n), int(c), k) for n, c in pairs]))
    return found


def chance_of_one(n: int, c: int, k: int) -> float:
    """1 - C(n - c, k) / C(n, k): unbiased chance that k of n samples, of which c were right, hold a right one.

    Chen et al. 2021, eq. 1, as the product of their figure 3: no large binomials.
    """
    if n - c < k:
        return 1.0
    return float(1.0 - np.prod(1.0 - k / np.arange(n - c + 1, n + 1)))


def score_first_tries(
    trials: Sequence[Trial], first: Sequence[Verdict], turns: Sequence[int], *, tries: int
) -> dict[str, float]:
    """What episodes of up to `tries` turns are to be compared with: `first` are the verdicts on first answers alone.

    first_try_pass@N is the chance that one of N independent first answers is right: more tries without any remark.
    """
    sampled = bootstrap(item_means(trials, first, greedy=False))
    scores = {
        "first_try_accuracy": sampled.mean,
        "first_try_accuracy_low": sampled.low,
        "first_try_accuracy_high": sampled.high,
        "first_try_greedy_accuracy": float(np.nanmean(item_means(trials, first, greedy=True))),
        "turns_mean": float(
            np.mean([count for trial, count in zip(trials, turns, strict=True) if trial.sample is not None])
        ),
    }
    for k, one in pass_at_k(trials, first, ks=[tries]).items():
        scores |= {f"first_try_pass@{k}": one.mean}
    return scores


def item_means(trials: Sequence[Trial], verdicts: Sequence[Verdict], *, greedy: bool) -> NDArray[np.float64]:
    """Share of exactly right completions of each item, float64 [items]; NaN where none got a verdict."""
    right, given = _counts(trials, verdicts, greedy=greedy)
    if not given.any():
        raise ValueError(f"none of {len(trials)} held-out trials ({'greedy' if greedy else 'sampled'}) got a verdict")
    right[given == 0] = np.nan
    means: NDArray[np.float64] = right / np.maximum(given, 1.0)
    return means


def _counts(
    trials: Sequence[Trial], verdicts: Sequence[Verdict], *, greedy: bool
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """How many completions of each item were exactly right, and how many got a verdict: float64 [items] each."""
    num_items = 1 + max((trial.index for trial in trials), default=-1)
    right, given = np.zeros(num_items), np.zeros(num_items)
    for trial, verdict in zip(trials, verdicts, strict=True):
        if verdict.reward is not None and (trial.sample is None) is greedy:
            right[trial.index] += verdict.parts["exact"]
            given[trial.index] += 1
    return right, given
