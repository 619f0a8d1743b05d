"""Every formula against hand-worked numbers, and its gradient against finite differences."""

from __future__ import annotations

import math
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from configs.formulas import Advantage, Aggregation, Ratio
from learners.losses import (
    at_level,
    batch_advantages,
    clipped_losses,
    effective_sample_share,
    group_advantages,
    importance_weights,
    k3,
    overlong_penalties,
    penalised_returns,
    probability_ratios,
    token_weights,
)


def advantages(rewards: list[float], advantage: Advantage = "unbiased_std") -> list[float]:
    groups = np.zeros(len(rewards), dtype=np.int64)
    return [float(value) for value in group_advantages(np.array(rewards), groups, advantage=advantage)]


@pytest.mark.parametrize(
    ("rewards", "advantage", "expected"),
    [
        ([1.0] + [0.0] * 7, "unbiased_std", [2.4749] + [-0.3536] * 7),
        ([1.0] + [0.0] * 7, "population_std", [2.6458] + [-0.3780] * 7),
        ([1.0] + [0.0] * 7, "mean_only", [0.875] + [-0.125] * 7),
        ([1.0, 0.0, 0.0, 0.0], "unbiased_std", [1.5, -0.5, -0.5, -0.5]),
        ([1.0, 0.0], "unbiased_std", [0.7071, -0.7071]),
        ([1.0, 0.0, 0.0, 0.5], "leave_one_out", [1 - 0.5 / 3, -0.5, -0.5, 0.5 - 1 / 3]),
    ],
)
def test_reference_advantages(rewards: list[float], advantage: Advantage, expected: list[float]) -> None:
    assert advantages(rewards, advantage) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("advantage", ["unbiased_std", "population_std", "mean_only", "leave_one_out"])
@given(reward=st.floats(-10, 10), size=st.integers(1, 9))
def test_a_group_without_spread_has_exactly_no_advantage(advantage: Advantage, reward: float, size: int) -> None:
    assert advantages([reward] * size, advantage) == [0.0] * size


def test_groups_do_not_mix_wherever_their_rows_stand() -> None:
    rewards, groups = np.array([1.0, 5.0, 0.0, 5.0]), np.array([7, 9, 7, 9])
    got = group_advantages(rewards, groups, advantage="unbiased_std")
    np.testing.assert_allclose(got, [0.7071, 0.0, -0.7071, 0.0], atol=1e-4)


@pytest.mark.parametrize(
    ("aggregation", "expected"),
    [
        ("token", [1 / 6] * 3),
        ("sequence", [1 / 3, 1 / 6, 1 / 9]),
        ("constant", [1 / 30] * 3),
    ],
)
def test_token_weights(aggregation: Aggregation, expected: list[float]) -> None:
    got = token_weights(np.array([1, 2, 3]), aggregation=aggregation, constant=10)
    np.testing.assert_allclose(got, expected)


def test_no_rows_have_no_weights() -> None:
    for aggregation in get_args(Aggregation):
        assert token_weights(np.zeros(0, np.int64), aggregation=aggregation, constant=10).shape == (0,)


def test_batch_advantages_are_over_all_tokens() -> None:
    got = batch_advantages(np.array([1.0, 1.0, 1.0, 0.0]))
    np.testing.assert_allclose(got, [1 / 3**0.5] * 3 + [-(3**0.5)], rtol=1e-5)
    assert batch_advantages(np.full(3, 0.1)).tolist() == [0.0] * 3
    assert batch_advantages(np.zeros(0)).shape == (0,)


def test_a_penalty_counts_from_its_token_on_backward() -> None:
    returns = penalised_returns(1.0, np.array([0.1, -0.2, 0.4]))
    np.testing.assert_allclose(returns, [0.7, 0.8, 0.6])
    assert penalised_returns(0.3, np.zeros(2)).tolist() == [0.3, 0.3]


def test_overlong_penalties() -> None:
    lengths = np.array([1, 6, 7, 8, 10])
    np.testing.assert_allclose(overlong_penalties(lengths, limit=10, buffer=4), [0, 0, -0.25, -0.5, -1])
    assert not overlong_penalties(lengths, limit=10, buffer=0).any()


@pytest.mark.parametrize(
    ("ratio", "expected"),
    [
        ("token", [-1.0, -3.0, -2.0, -0.5]),
        ("sequence_mean", [-2.0, -2.0, -2.0, -0.5]),
        ("sequence", [-4.0, -4.0, -2.0, -0.5]),
    ],
)
def test_log_probs_at_the_level_of_the_ratio(ratio: Ratio, expected: list[float]) -> None:
    values, owners = torch.tensor([-1.0, -3.0, -2.0, -0.5]), torch.tensor([0, 0, 1, 2])
    assert at_level(values, owners, ratio=ratio).tolist() == expected
    assert at_level(values[:0], owners[:0], ratio=ratio).shape == (0,)


def test_importance_weights_are_truncated_and_carry_no_gradient() -> None:
    start = torch.tensor([0.0, math.log(1.5), math.log(3.0), -1e9, 1e9], requires_grad=True)
    behaviour = torch.zeros(5)
    capped = importance_weights(start, behaviour, cap=2.0)
    assert capped.tolist() == pytest.approx([1.0, 1.5, 2.0, 0.0, 2.0], abs=1e-6)
    assert not capped.requires_grad
    assert torch.isfinite(importance_weights(start, behaviour, cap=None)).all()


def test_the_ratio_without_a_cap_is_that_of_ppo() -> None:
    log_probs, start, behaviour = torch.randn(3, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ratios = probability_ratios(log_probs, start, importance_weights(start, behaviour, cap=None))
    torch.testing.assert_close(ratios, (log_probs - behaviour).exp())


@pytest.mark.parametrize(
    ("ratio", "advantage", "dual", "loss", "slope"),
    [
        (1.0, 2.0, None, -2.0, -2.0),
        (1.3, 2.0, None, -2.56, 0.0),  # over 1 + 0.28 and wanted up: clipped
        (0.5, 2.0, None, -1.0, -2.0),  # far below, but wanted up: not clipped
        (0.7, -2.0, None, 1.6, 0.0),  # under 1 - 0.2 and wanted down: clipped
        (1.3, -2.0, None, 2.6, 2.0),
        (4.0, -2.0, None, 8.0, 2.0),
        (4.0, -2.0, 3.0, 6.0, 0.0),  # dual clip: -3 A
        (4.0, 2.0, 3.0, -2.56, 0.0),  # dual clip is for negative advantages
        (2.0, -2.0, 3.0, 4.0, 2.0),
    ],
)
def test_clipped_losses(ratio: float, advantage: float, dual: float | None, loss: float, slope: float) -> None:
    ratios = torch.tensor([ratio], dtype=torch.float64, requires_grad=True)
    got = clipped_losses(
        ratios, torch.tensor([advantage], dtype=torch.float64), clip_low=0.2, clip_high=0.28, dual_clip=dual
    )
    (got_gradient,) = torch.autograd.grad(got.sum(), ratios)
    assert got.item() == pytest.approx(loss)
    assert got_gradient.item() == pytest.approx(slope)


@pytest.mark.parametrize("cap", [None, 2.0])
@pytest.mark.parametrize("dual", [None, 3.0])
def test_the_gradient_of_the_whole_loss_is_right(cap: float | None, dual: float | None) -> None:
    """Finite differences in float64, of clipped policy gradient + KL, at points away from the kinks."""
    generator = torch.Generator().manual_seed(1)
    start = torch.randn(64, dtype=torch.float64, generator=generator)
    behaviour = start + 0.8 * torch.randn(64, dtype=torch.float64, generator=generator)
    reference = start + 0.5 * torch.randn(64, dtype=torch.float64, generator=generator)
    signs = torch.randn(64, dtype=torch.float64, generator=generator)
    weights = importance_weights(start, behaviour, cap=cap)

    def loss(log_probs: torch.Tensor) -> torch.Tensor:
        ratios = probability_ratios(log_probs, start, weights)
        clipped = clipped_losses(ratios, signs, clip_low=0.2, clip_high=0.28, dual_clip=dual)
        return (clipped + 0.1 * k3(log_probs, reference)).mean()

    now = (start + 0.05).requires_grad_()
    kinks = torch.tensor([0.8, 1.28, 3.0], dtype=torch.float64)
    ratios = probability_ratios(now.detach(), start, weights)
    assert (ratios[:, None] - kinks).abs().min() > 1e-5
    assert bool((ratios < 0.8).any())
    assert bool((ratios > 1.28).any())
    assert torch.autograd.gradcheck(loss, (now,), eps=1e-7, atol=1e-6)


@given(st.lists(st.tuples(st.floats(-30, 0), st.floats(-30, 0)), min_size=1, max_size=20))
def test_k3_is_never_negative_and_zero_where_the_two_agree(pairs: list[tuple[float, float]]) -> None:
    log_probs, reference = torch.tensor(pairs, dtype=torch.float64).T
    assert (k3(log_probs, reference) >= 0).all()
    assert (k3(log_probs, log_probs) == 0).all()


def test_k3_estimates_the_kl_divergence() -> None:
    policy = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    reference = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    exact = (policy * (policy / reference).log()).sum()
    torch.testing.assert_close((policy * k3(policy.log(), reference.log())).sum(), exact)


def test_effective_sample_share() -> None:
    assert effective_sample_share(torch.full((10,), 0.3)) == pytest.approx(1.0)
    assert effective_sample_share(torch.tensor([1.0, 0.0, 0.0, 0.0])) == pytest.approx(0.25)
