"""Held-out accuracy counts exact answers alone, and its intervals cover what they promise."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.protocols import Verdict
from contracts.records import StopReason
from evaluation.heldout import METRIC, Trial, bootstrap, item_means, paired_difference, plan, score


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


@given(st.lists(st.floats(0, 1), min_size=1, max_size=60))
def test_the_interval_holds_its_mean_and_stays_in_range(means: list[float]) -> None:
    interval = bootstrap(np.array(means))
    assert min(means) - 1e-12 <= interval.low <= interval.high <= max(means) + 1e-12
    assert interval.mean == pytest.approx(float(np.mean(means)))


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    covered = [
        interval.low <= 0.3 <= interval.high
        for interval in (bootstrap((rng.random(200) < 0.3).astype(float), seed=i) for i in range(100))
    ]
    assert 0.89 <= float(np.mean(covered)) <= 0.99


def test_the_same_items_give_the_same_interval() -> None:
    means = np.linspace(0, 1, 50)
    assert bootstrap(means) == bootstrap(means)


def test_a_paired_difference_is_narrower_than_two_intervals() -> None:
    rng = np.random.default_rng(1)
    before = rng.random(300)
    after = np.clip(before + 0.05 + rng.normal(0, 0.02, 300), 0, 1)
    paired, apart = paired_difference(before, after), bootstrap(after)
    assert paired.low > 0.03
    assert paired.high - paired.low < 0.2 * (apart.high - apart.low)


def test_versions_are_compared_on_the_same_items() -> None:
    with pytest.raises(ValueError, match="same items"):
        paired_difference(np.zeros(3), np.zeros(4))


def test_trials_name_items_not_places() -> None:
    trials = [Trial(index=1, sample=0), Trial(index=0, sample=0)]
    assert item_means(trials, [judged(1.0), judged(0.0)], greedy=False).tolist() == [0.0, 1.0]
