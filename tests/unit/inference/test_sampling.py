"""Tokens are drawn from the distribution their log-probs say, row by row."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from contracts.protocols import Sampling
from inference.sampling import RowSampler, uniforms

LOGITS = torch.tensor([2.0, 1.0, 0.0, -1.0, -torch.inf])
NUM = 20_000


def _draw(logits_BV: torch.Tensor, samplings: list[Sampling], *, step: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    sampler = RowSampler(samplings, shared=np.random.default_rng(0), device=torch.device("cpu"))
    return sampler.draw(logits_BV, torch.arange(len(samplings)), step)


def _frequencies(**sampling: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """(frequency, log-prob) of each token over many seeds."""
    samplings = [Sampling(max_tokens=1, seed=seed, **sampling) for seed in range(NUM)]
    token_B, log_prob_B = _draw(LOGITS.expand(NUM, -1), samplings)
    log_probs = torch.full((5,), -torch.inf).index_put((token_B,), log_prob_B)
    return torch.bincount(token_B, minlength=5) / NUM, log_probs


@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
def test_frequencies_are_the_probabilities(temperature: float) -> None:
    frequencies, log_probs = _frequencies(temperature=temperature)
    expected = torch.softmax(LOGITS / temperature, dim=0)
    torch.testing.assert_close(frequencies, expected, atol=0.012, rtol=0)  # 3.4 standard errors
    torch.testing.assert_close(log_probs.exp(), expected)


def test_top_p_keeps_the_smallest_set_that_reaches_it() -> None:
    """Probabilities 0.64, 0.24, 0.09, 0.03: 0.7 needs the first two."""
    frequencies, log_probs = _frequencies(top_p=0.7)
    kept = torch.softmax(LOGITS[:2], dim=0)
    torch.testing.assert_close(frequencies[:2], kept, atol=0.012, rtol=0)
    torch.testing.assert_close(log_probs[:2].exp(), kept)
    assert frequencies[2:].sum() == 0


def test_a_tiny_top_p_is_the_likeliest_token_for_certain() -> None:
    frequencies, log_probs = _frequencies(top_p=1e-6)
    assert frequencies[0] == 1
    assert log_probs[0] == 0


def test_temperature_zero_is_greedy_with_unscaled_log_probs_even_beside_others() -> None:
    samplings = [Sampling(max_tokens=1, temperature=0.0, top_p=0.1), Sampling(max_tokens=1, seed=1, top_p=0.7)]
    token_B, log_prob_B = _draw(LOGITS.expand(2, -1), samplings)
    assert token_B[0] == 0
    assert log_prob_B[0] == torch.log_softmax(LOGITS, dim=0)[0]


def test_a_row_draws_the_same_alone_and_in_company() -> None:
    logits_BV = torch.randn(6, 50, generator=torch.Generator().manual_seed(0))
    samplings = [Sampling(max_tokens=4, seed=seed) for seed in range(6)]
    for step in range(4):
        together, _ = _draw(logits_BV, samplings, step=step)
        for row in range(6):
            alone, _ = _draw(logits_BV[row : row + 1], samplings[row : row + 1], step=step)
            assert alone[0] == together[row]


def test_a_seed_draws_the_same_token_at_a_step_however_many_are_asked_for() -> None:
    logits_BV = torch.randn(1, 50, generator=torch.Generator().manual_seed(0))
    short, _ = _draw(logits_BV, [Sampling(max_tokens=3, seed=7)], step=2)
    long, _ = _draw(logits_BV, [Sampling(max_tokens=90, seed=7)], step=2)
    assert short[0] == long[0]


def test_steps_draw_different_numbers() -> None:
    logits_BV = torch.zeros(1, 1000)
    assert len({int(_draw(logits_BV, [Sampling(max_tokens=20, seed=7)], step=step)[0][0]) for step in range(20)}) > 10


def test_rows_without_a_seed_draw_from_the_engines_stream() -> None:
    shared = np.random.default_rng(0)
    samplings = [Sampling(max_tokens=1)] * 40
    draws = [
        RowSampler(samplings, shared=shared, device=torch.device("cpu")).draw(torch.zeros(40, 99), torch.arange(40), 0)[
            0
        ]
        for _ in range(2)
    ]
    assert draws[0].tolist() != draws[1].tolist()
    assert len(set(draws[0].tolist())) > 10


def test_an_impossible_token_is_never_drawn_at_the_end_of_the_range() -> None:
    """The uniform number next to 1 must not fall off the vocabulary's end or on a token of probability 0."""
    sampler = RowSampler([Sampling(max_tokens=1, seed=0)], shared=np.random.default_rng(0), device=torch.device("cpu"))
    sampler._uniform_BT = torch.tensor([[1 - 2**-53]], dtype=torch.float64)
    token_B, log_prob_B = sampler.draw(LOGITS[None], torch.arange(1), 0)
    assert token_B[0] == 3
    assert torch.isfinite(log_prob_B).all()


def test_the_numbers_are_even_and_those_of_neighbouring_seeds_have_nothing_in_common() -> None:
    drawn = uniforms(range(2_000), 50)
    assert drawn.min() >= 0.0
    assert drawn.max() < 1.0
    counts = np.histogram(drawn, bins=100, range=(0, 1))[0]
    assert ((counts - 1_000) ** 2 / 1_000).sum() < 150  # chi-squared, 99 degrees of freedom: 1 in 1,400
    for first, second in ((drawn[:-1], drawn[1:]), (drawn[:, :-1], drawn[:, 1:])):  # seeds beside each other, steps
        assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 4 / first.size**0.5


def test_a_seed_may_be_any_integer() -> None:
    assert len({float(row[0]) for row in uniforms([0, -1, 2**63, 2**64 - 2, 7], 1)}) == 5
