"""Finds the first batch after which a metric fell, and in it the episodes: between a good version and a bad one.

    good ─●──○──○──●──○──○──○─ bad      ● weights at hand: evaluated as they are, first of all
          0                   n         ○ folded again from the nearest state below, and only where the search asks

The rule. A version is bad where its score is past the threshold good + share · (bad - good), scores being means over
the same held-out items for all versions; share is 1/2 unless said otherwise. How sure a verdict is: the share of paired
bootstrap draws of the items (Efron 1979) on its side of the threshold, which is drawn along. The search halves what
lies between, so it finds a place where the metric goes from good to bad; that there is one such place only, it assumes.

A training metric stands in every VERSION of the log: nothing is folded. One value is one batch, and noisy, so all of
them are taken: the step from which on another mean fits best, by least squares (Hinkley 1970, "Inference about the
change-point in a sequence of random variables"); how sure: its share of the likelihood, each side's variance alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from contracts.errors import UserError
from evaluation.intervals import Interval, paired_difference

Float64Array = NDArray[np.float64]
SHARE = 0.5  # of the way from good to bad
MIN_STEPS = 4  # of a training metric, to tell a change from noise
_RESAMPLES = 2_000


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """On one version. `sure`: 0.5 where it might as well be the other."""

    score: float
    is_bad: bool
    sure: float


class Judge:
    """Says of scores of items whether they are those of a bad version."""

    def __init__(self, good: Float64Array, bad: Float64Array, *, share: float = SHARE) -> None:
        """Scores of the same items under both. Raises UserError where the two cannot be told apart."""
        self._good, self._bad, self._share = good, bad, share
        self.difference: Interval = paired_difference(good, bad)
        if self.difference.low <= 0.0 <= self.difference.high:
            raise UserError(
                "where the metric fell",
                f"from the good version to the bad one it changed by {self.difference.mean:+.4f} "
                f"[{self.difference.low:+.4f}, {self.difference.high:+.4f}] on {len(good)} items: that may be nothing",
                "name versions that differ more, or take more samples (--samples)",
            )

    @property
    def threshold(self) -> float:
        good = float(np.nanmean(self._good))
        return good + self._share * (float(np.nanmean(self._bad)) - good)

    def judge(self, scores: Float64Array) -> Verdict:
        """`scores` of the same items, in the same order."""
        towards_bad = math.copysign(1.0, self.difference.mean)
        past = towards_bad * (scores - (1.0 - self._share) * self._good - self._share * self._bad)
        past = past[~np.isnan(past)]
        drawn = np.random.default_rng(0).integers(len(past), size=(_RESAMPLES, len(past)))
        is_bad = bool(past.mean() > 0.0)
        on_its_side = (past[drawn].mean(axis=1) > 0.0) == is_bad
        return Verdict(score=float(np.nanmean(scores)), is_bad=is_bad, sure=float(on_its_side.mean()))


def search(num: int, *, at_hand: Collection[int], is_bad: Callable[[int], bool]) -> int:
    """The first bad place of 1 … num, where 0 is good and `num` is bad. Asks of places `at_hand` first, then of at most
    ⌈log2⌉ others."""
    low, high = 0, num
    while high - low > 1:
        middle = (low + high) / 2
        cheap = [place for place in at_hand if low < place < high]
        place = min(cheap, key=lambda one: (abs(one - middle), one)) if cheap else (low + high) // 2
        if is_bad(place):
            high = place
        else:
            low = place
    return high


@dataclass(frozen=True, kw_only=True)
class Change:
    """Where the mean of a series changed: from `place` on. `sure`: how much of the likelihood is on that place."""

    place: int
    before: float
    after: float
    sure: float


def find_change(values: Float64Array) -> Change:
    """The place, from 1 on, that parts `values` [N] best into two means. Raises UserError where N is too small."""
    num = len(values)
    if num < MIN_STEPS:
        raise UserError(
            "where a training metric changed", f"there are {num} steps with it between the two versions",
            f"name versions at least {MIN_STEPS} steps apart",
        )  # fmt: skip
    places = np.arange(1, num)
    sums, squares = np.cumsum(values), np.cumsum(values**2)
    left, right = sums[:-1], sums[-1] - sums[:-1]
    errors = np.maximum(squares[-1] - left**2 / places - right**2 / (num - places), 0.0)
    floor = 1e-12 * max(float(squares[-1]), 1e-300)  # a perfect fit: likelihoods stay finite
    logs = -0.5 * num * np.log(errors + floor)
    likelihoods = np.exp(logs - logs.max())
    best = int(np.argmax(likelihoods))
    return Change(
        place=int(places[best]),
        before=float(left[best] / places[best]),
        after=float(right[best] / (num - places[best])),
        sure=float(likelihoods[best] / likelihoods.sum()),
    )


@dataclass(frozen=True, kw_only=True)
class Culprits:
    """Groups of a batch without which the metric does not fall. `restored`: the share of the step's fall that their
    absence undoes; `trials`: single steps that were computed and evaluated for it."""

    leases: tuple[int, ...]
    restored: float
    trials: int


def find_culprits(
    sources: Sequence[Sequence[int]], *, restored: Callable[[Collection[int]], float], share: float = SHARE
) -> Culprits | None:
    """The smallest set of groups found whose absence undoes at least `share` of a step's fall, or None.

    `sources`: the batch's leases by source. `restored` gives the share of the fall that leaving some leases out undoes.
    First each source alone; then the better half, again and again (delta debugging, Zeller and Hildebrandt 2002,
    without its complements: what only several halves together bring about is not narrowed down further).
    """
    trials = 0

    def tried(leases: Sequence[int]) -> tuple[float, tuple[int, ...]]:
        nonlocal trials
        trials += 1
        return restored(leases), tuple(leases)

    found = max((tried(source) for source in sources), default=(0.0, ()), key=lambda one: one[0])
    if found[0] < share:
        return None
    while len(found[1]) > 1:
        leases = found[1]
        half = len(leases) // 2
        better = max((tried(part) for part in (leases[:half], leases[half:])), key=lambda one: one[0])
        if better[0] < share:
            break
        found = better
    return Culprits(leases=found[1], restored=found[0], trials=trials)
