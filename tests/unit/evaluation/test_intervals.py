"""Bootstrap intervals hold their mean, cover about as often as they say, and pairing narrows them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluation.intervals import bootstrap, bootstrap_seeds, paired_difference


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


def test_unknown_values_are_left_out() -> None:
    assert bootstrap(np.array([0.5, np.nan, 0.25])) == bootstrap(np.array([0.5, 0.25]))
    one = bootstrap(np.array([0.3]))
    assert (one.low, one.mean, one.high) == (0.3, 0.3, 0.3)


def test_seeds_and_items_both_widen_the_interval() -> None:
    scores = np.array([0.48, 0.5, 0.52])
    seeds, items = bootstrap_seeds(scores, item_error=0.0), bootstrap_seeds(np.full(3, 0.5), item_error=0.02)
    both = bootstrap_seeds(scores, item_error=0.02)
    assert seeds.mean == items.mean == both.mean == pytest.approx(0.5)
    assert (seeds.low, seeds.high) == pytest.approx((0.48, 0.52), abs=0.002)
    assert (items.low, items.high) == pytest.approx((0.5 - 1.96 * 0.02, 0.5 + 1.96 * 0.02), abs=0.004)
    assert both.high - both.low > max(seeds.high - seeds.low, items.high - items.low)
    assert bootstrap_seeds(np.full(3, 0.5), item_error=0.0) == bootstrap_seeds(np.array([0.5]), item_error=0.0)
