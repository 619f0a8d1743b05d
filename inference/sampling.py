"""How the transformers engine draws tokens: one independent random stream per request.

Shapes: B rows in the batch, T tokens of a completion, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from contracts.protocols import Sampling

GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2^64 over the golden ratio: SplitMix64's step


class RowSampler:
    """Temperature, top-p and random numbers of each row of a batch.

    A row's numbers come from its own seed alone, so a draw depends on the row's logits and seed, not on its neighbours.
    Rows without a seed draw from `shared`, in row order.
    """

    def __init__(self, samplings: Sequence[Sampling], *, shared: np.random.Generator, device: torch.device) -> None:
        temperature_B = torch.tensor([one.temperature for one in samplings], dtype=torch.float32, device=device)
        self._greedy_B = temperature_B == 0
        self._scale_B1 = torch.where(self._greedy_B, 1.0, temperature_B)[:, None]
        self._top_p_B1 = torch.tensor([one.top_p for one in samplings], dtype=torch.float32, device=device)[:, None]
        self._has_top_p = any(one.top_p < 1 for one in samplings)
        self._all_greedy, self._none_greedy = bool(self._greedy_B.all()), not self._greedy_B.any()
        length = max(one.max_tokens for one in samplings)
        uniform_BT = uniforms([one.seed or 0 for one in samplings], length)
        unseeded = [place for place, one in enumerate(samplings) if one.seed is None]
        uniform_BT[unseeded] = shared.random((len(unseeded), length))
        self._uniform_BT = torch.from_numpy(uniform_BT).to(device)

    def draw(self, logits_BV: torch.Tensor, rows: torch.Tensor, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(token_B int64, log_prob_B float32): token number `step` of the batch rows `rows`, and its log-prob under the
        distribution sampled from. Greedy rows: the likeliest token, under the unscaled distribution."""
        log_probs_BV = torch.log_softmax(logits_BV.float() / self._scale_B1[rows], dim=-1)
        if self._all_greedy:
            likeliest_B = log_probs_BV.argmax(dim=-1)
            return likeliest_B, _pick(log_probs_BV, likeliest_B)
        if self._has_top_p:
            kept_BV = _nucleus(log_probs_BV, self._top_p_B1[rows])
            kept_BV |= self._greedy_B[rows][:, None]
            log_probs_BV = torch.log_softmax(log_probs_BV.masked_fill(~kept_BV, -torch.inf), dim=-1)
        # Inverse transform: the first token whose cumulative probability exceeds a uniform number. A token of
        # probability 0 never exceeds its predecessor, so it is never drawn.
        cumulative_BV = log_probs_BV.exp().double().cumsum(dim=-1)
        total_B1 = cumulative_BV[:, -1:]
        target_B1 = torch.minimum(
            self._uniform_BT[rows, step][:, None] * total_B1, torch.nextafter(total_B1, torch.zeros_like(total_B1))
        )
        token_B = torch.searchsorted(cumulative_BV, target_B1, right=True)[:, 0]
        if not self._none_greedy:
            token_B = torch.where(self._greedy_B[rows], log_probs_BV.argmax(dim=-1), token_B)
        return token_B, _pick(log_probs_BV, token_B)


def uniforms(seeds: Sequence[int], length: int) -> NDArray[np.float64]:
    """[B, length] numbers in [0, 1): each row SplitMix64 (Steele, Lea and Flood 2014) from its own seed, hashed.

    A row's number t hangs on seed and t alone. All rows at once: a generator object a row costs more than a decoding
    step of 256 rows does.
    """
    start_B1 = _mix(np.array([seed % 2**64 for seed in seeds], dtype=np.uint64))[:, None]
    bits_BT = _mix(start_B1 + GOLDEN * np.arange(1, length + 1, dtype=np.uint64))
    return np.asarray((bits_BT >> np.uint64(11)) * 2.0**-53, dtype=np.float64)


def _mix(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _pick(log_probs_BV: torch.Tensor, token_B: torch.Tensor) -> torch.Tensor:
    return log_probs_BV.gather(1, token_B[:, None])[:, 0]


def _nucleus(log_probs_BV: torch.Tensor, top_p_B1: torch.Tensor) -> torch.Tensor:
    """bool [B, V]: the smallest set of likeliest tokens whose probabilities reach top_p (Holtzman et al., 2020)."""
    sorted_BV, order_BV = log_probs_BV.exp().sort(dim=-1, descending=True)
    before_BV = sorted_BV.cumsum(dim=-1) - sorted_BV
    return torch.zeros_like(before_BV, dtype=torch.bool).scatter(1, order_BV, before_BV < top_p_B1)
