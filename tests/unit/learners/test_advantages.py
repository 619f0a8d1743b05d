"""Advantages against the paper's sum written out, truncation, and moments merged batch by batch."""

from __future__ import annotations

import numpy as np
import pytest

from learners.advantages import Float64Array, Moments, discounted_returns, gae

DISCOUNT, LAMBDA = 0.97, 0.9


def written_out(rewards: Float64Array, values: Float64Array, *, terminated: bool) -> Float64Array:
    """A_t = Σ_l (γλ)^l (r_{t+l} + γ V(s_{t+l+1}) − V(s_{t+l})), Schulman et al. 2016, eq. 16, term by term."""
    following = np.append(values[1:-1], 0.0 if terminated else values[-1])
    deltas = rewards + DISCOUNT * following - values[:-1]
    return np.array(
        [sum((DISCOUNT * LAMBDA) ** step * delta for step, delta in enumerate(deltas[t:])) for t in range(len(deltas))]
    )


def test_advantages_are_the_papers_sum() -> None:
    draws = np.random.default_rng(0)
    lengths = [1, 7, 128, 3, 50]
    rewards = [draws.normal(size=length) for length in lengths]
    values = [draws.normal(size=length + 1) for length in lengths]
    terminated = [True, False, False, True, True]
    found = gae(rewards, values, terminated, discount=DISCOUNT, gae_lambda=LAMBDA)
    for number in range(len(lengths)):
        expected = written_out(rewards[number], values[number], terminated=terminated[number])
        np.testing.assert_allclose(found[number], expected, atol=1e-6, rtol=0)


def test_a_truncated_stretch_counts_what_would_have_come() -> None:
    rewards, values = [np.array([1.0])], [np.array([0.5, 10.0])]
    [cut] = gae(rewards, values, [False], discount=0.5, gae_lambda=1.0)
    [ended] = gae(rewards, values, [True], discount=0.5, gae_lambda=1.0)
    assert cut.tolist() == [1.0 + 0.5 * 10.0 - 0.5]
    assert ended.tolist() == [1.0 - 0.5]


def test_with_lambda_1_the_advantage_is_the_return_minus_the_value() -> None:
    rewards = np.array([1.0, 2.0, 4.0])
    [found] = gae([rewards], [np.array([0.25, 0.5, 0.75, 99.0])], [True], discount=0.5, gae_lambda=1.0)
    np.testing.assert_allclose(found, [1 + 1 + 1 - 0.25, 2 + 2 - 0.5, 4 - 0.75], atol=1e-12)


def test_a_discounted_return_goes_on_where_it_stood() -> None:
    whole = discounted_returns(np.array([1.0, 2.0, 3.0, 4.0]), before=0.0, discount=0.5)
    rest = discounted_returns(np.array([3.0, 4.0]), before=float(whole[1]), discount=0.5)
    assert whole.tolist() == [1.0, 2.5, 4.25, 6.125]
    assert rest.tolist() == whole[2:].tolist()


@pytest.mark.parametrize("shape", [(), (3,)])
def test_merged_moments_are_those_of_everything(shape: tuple[int, ...]) -> None:
    draws = np.random.default_rng(1)
    parts = [draws.normal(loc=5.0, scale=2.0, size=(size, *shape)) for size in (1, 10, 0, 100)]
    moments = Moments.of_nothing(*shape)
    for part in parts:
        moments = moments.merge(part)
    everything = np.concatenate(parts)
    np.testing.assert_allclose(moments.mean, everything.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(moments.variance, everything.var(axis=0), rtol=1e-12)
    assert moments.count == 111
