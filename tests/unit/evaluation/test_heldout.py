"""Held-out accuracy counts exact answers alone, and its intervals cover what they promise."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from contracts.protocols import Verdict
from contracts.records import StopReason
from evaluation.heldout import METRIC, Trial, chance_of_one, item_means, pass_at_k, plan, score


def judged(exact: float, *, reward: float | None = None) -> Verdict:
    given = exact if reward is None else reward
    return Verdict(reward=given, parts={"exact": exact}, stop_reason=StopReason.TERMINATED)


FAILED = Verdict(reward=None, parts={}, stop_reason=StopReason.ENV_TIMEOUT)


def test_plan_asks_for_every_item_as_often_as_told() -> None:
    trials = plan(num_items=3, samples=2)
    assert [(trial.index, trial.sample, trial.temperature) for trial in trials[:3]] == [
        (0, 0, 1.0),
        (0, 1, 1.0),
        (0, None, 0.0),
    ]
    assert len(trials) == len(set(trials)) == 9
    assert {trial.index for trial in trials} == {0, 1, 2}


def test_scores_by_hand() -> None:
    """Item 0: samples right, wrong; greedy right. Item 1: samples wrong, wrong; greedy wrong, with a partial reward."""
    verdicts = [judged(1.0), judged(0.0), judged(1.0), judged(0.0), judged(0.0, reward=0.7), judged(0.0, reward=0.8)]
    scores = score(plan(num_items=2, samples=2), verdicts)
    assert scores[METRIC] == 0.25
    assert scores["greedy_accuracy"] == 0.5
    assert scores["reward_mean"] == pytest.approx(3.5 / 6)
    assert scores["unscored"] == 0
    assert scores["sampled_accuracy_low"] <= 0.25 <= scores["sampled_accuracy_high"]


def test_a_partial_reward_is_no_accuracy() -> None:
    scores = score(plan(num_items=4, samples=1), [judged(0.0, reward=0.99)] * 8)
    assert (scores[METRIC], scores["greedy_accuracy"]) == (0.0, 0.0)
    assert scores["reward_mean"] == pytest.approx(0.99)


def test_a_failed_environment_is_no_wrong_answer() -> None:
    trials = plan(num_items=2, samples=2)
    verdicts = [judged(1.0), FAILED, judged(1.0), FAILED, FAILED, judged(0.0)]
    scores = score(trials, verdicts)
    assert scores[METRIC] == 1.0  # item 1 has no sample left, item 0 one
    assert scores["greedy_accuracy"] == 0.5
    assert scores["unscored"] == 3
    assert np.isnan(item_means(trials, verdicts, greedy=False)[1])


@pytest.mark.parametrize("spared", [None, 0])
def test_nothing_scored_is_an_error(spared: int | None) -> None:
    trials = plan(num_items=2, samples=1)
    verdicts = [judged(1.0) if trial.sample == spared and spared is not None else FAILED for trial in trials]
    with pytest.raises(ValueError, match="got a verdict"):
        score(trials, verdicts)


def test_trials_and_verdicts_must_match() -> None:
    with pytest.raises(ValueError, match="zip"):
        score(plan(num_items=2, samples=1), [judged(1.0)])


def test_trials_name_items_not_places() -> None:
    trials = [Trial(index=1, sample=0), Trial(index=0, sample=0)]
    assert item_means(trials, [judged(1.0), judged(0.0)], greedy=False).tolist() == [0.0, 1.0]


# ---------------------------------------------------------------------------------------------- pass@k


@pytest.mark.parametrize("n", [1, 2, 5, 8])
def test_pass_at_k_is_the_share_of_subsets_with_a_right_sample(n: int) -> None:
    """The definition, by counting every subset of k samples: what the estimator's closed form stands for."""
    for c in range(n + 1):
        samples = [1] * c + [0] * (n - c)
        for k in range(1, n + 1):
            subsets = list(combinations(samples, k))
            share = sum(any(subset) for subset in subsets) / len(subsets)
            assert chance_of_one(n, c, k) == pytest.approx(share, abs=1e-12)


def test_pass_at_k_does_not_overflow() -> None:
    assert chance_of_one(10_000, 3, 5_000) == pytest.approx(0.875, abs=1e-3)


def test_the_estimate_is_unbiased() -> None:
    """The mean over many draws of 8 samples at p = 0.2 is 1 - 0.8^4; the naive 1 - (1 - c/n)^4 is too low there."""
    counts = np.random.default_rng(0).binomial(8, 0.2, size=4_000)
    mean = float(np.mean([chance_of_one(8, int(c), 4) for c in counts]))
    naive = float(np.mean(1 - (1 - counts / 8) ** 4))
    truth = 1 - 0.8**4
    assert abs(mean - truth) < 0.01
    assert truth - naive > 0.03


def test_pass_at_k_of_trials() -> None:
    """Item 0: 1 of 3 samples right. Item 1: 2 of 3. Greedy answers do not count."""
    trials = plan(num_items=2, samples=3)
    exact = [1.0, 0.0, 0.0, 1.0, 1.0, 1.0, 0.0, 0.0]
    found = pass_at_k(trials, [judged(value) for value in exact])
    assert list(found) == [1, 2, 3]
    assert found[1].mean == pytest.approx((1 / 3 + 2 / 3) / 2)
    assert found[2].mean == pytest.approx((2 / 3 + 1) / 2)
    assert (found[3].mean, found[3].low, found[3].high) == (1.0, 1.0, 1.0)
    scores = score(trials, [judged(value) for value in exact])
    assert scores["pass@1"] == pytest.approx(scores[METRIC])
    assert scores["pass@2_low"] <= scores["pass@2"] <= scores["pass@2_high"]


def test_an_item_with_too_few_verdicts_does_not_count() -> None:
    trials = plan(num_items=2, samples=4)
    verdicts = [judged(1.0), FAILED, FAILED, FAILED, judged(1.0)] + [judged(0.0)] * 5
    found = pass_at_k(trials, verdicts)
    assert list(found) == [1, 2, 4]
    assert found[1].mean == 0.5
    assert found[2].mean == found[4].mean == 0.0  # item 0 has one sample left
    only = pass_at_k(plan(num_items=1, samples=2), [judged(1.0), FAILED, judged(1.0)])
    assert list(only) == [1]


def test_one_sample_has_no_pass_at_k() -> None:
    scores = score(plan(num_items=2, samples=1), [judged(1.0)] * 4)
    assert not [name for name in scores if name.startswith("pass@")]
