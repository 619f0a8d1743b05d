"""The sum tree is exact: what it finds is what a plain search over the running sums finds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from buffers.sum_tree import SumTree, importance_weights

SETTINGS = st.lists(st.tuples(st.integers(0, 5_000), st.integers(0, 1 << 40)), min_size=1, max_size=60)


def fill(pairs: list[tuple[int, int]]) -> tuple[SumTree, np.ndarray[tuple[int], np.dtype[np.int64]]]:
    """The tree, set one pair after the other, and the plain array that it stands for."""
    tree, plain = SumTree(), np.zeros(5_001, dtype=np.int64)
    for row, priority in pairs:
        tree.set(np.array([row]), np.array([priority]))
        plain[row] = priority
    return tree, plain


@given(SETTINGS)
def test_points_fall_where_the_running_sums_say(pairs: list[tuple[int, int]]) -> None:
    tree, plain = fill(pairs)
    assert tree.total == int(plain.sum())
    if tree.total:
        edges = np.cumsum(plain)
        points = np.unique(np.concatenate([[0], edges - 1, edges]))
        points = points[(points >= 0) & (points < tree.total)]
        assert tree.find(points).tolist() == np.searchsorted(edges, points, side="right").tolist()


@given(SETTINGS)
def test_the_order_of_setting_does_not_matter(pairs: list[tuple[int, int]]) -> None:
    last = dict(pairs)
    once = SumTree()
    once.set(np.array(list(last)), np.array(list(last.values())))
    tree, _ = fill(pairs)
    assert once.total == tree.total
    if tree.total:
        draws = [one.sample(16, rng=np.random.default_rng(3)).tolist() for one in (once, tree)]
        assert draws[0] == draws[1]


def test_rows_are_drawn_in_proportion_and_zero_never() -> None:
    tree = SumTree()
    tree.set(np.arange(4), np.array([1, 0, 3, 4]))
    rng = np.random.default_rng(0)
    counts = np.bincount(np.concatenate([tree.sample(8, rng=rng) for _ in range(500)]), minlength=4)
    assert counts.tolist() == [500, 0, 1500, 2000]  # stretches of one eighth each: exact, not only on average


def test_weights_correct_for_being_drawn_more_often() -> None:
    weights = importance_weights(np.array([1, 3]), total=8, num_rows=4, beta=1.0)
    assert weights.tolist() == [1.0, pytest.approx(1 / 3)]
    assert importance_weights(np.array([1, 3]), total=8, num_rows=4, beta=0.0).tolist() == [1.0, 1.0]


def test_nothing_to_draw_and_negative_priorities_are_refused() -> None:
    tree = SumTree(3)
    with pytest.raises(ValueError, match="nothing to draw"):
        tree.sample(1, rng=np.random.default_rng(0))
    with pytest.raises(ValueError, match="not negative"):
        tree.set(np.array([0]), np.array([-1]))


def test_a_row_takes_a_little_over_eight_bytes() -> None:
    assert SumTree(1_000_000).num_bytes < 8.6 * 1_000_000
