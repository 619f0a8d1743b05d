"""The formulas of policy-gradient fine-tuning, as pure functions.

Shapes: N rows (episodes) of a batch; K completion tokens, all rows' tokens one after another.

Which of them a run uses, and under which published name, is decided in configs/formulas.py.

Three log-probabilities of each token meet in a step: `behaviour`, which the engine reported when it drew the token;
`start`, under the learner's weights at the start of the step; `log_probs`, under the weights being optimised.

    ratio = exp(log_probs - start) · min(cap, exp(start - behaviour))

The first factor carries the gradient; a batch is stepped on once, so its value is 1 there. The second is the truncated
importance weight, which corrects for the engine's numerics and for staleness alike (Yao et al. 2025, "Your efficient
RL framework secretly brings you off-policy training"; truncation as in IMPALA, Espeholt et al. 2018). Without a cap
the ratio is exp(log_probs - behaviour), PPO's. The clips then act on the ratio: a token whose probability has already
moved away from the behaviour policy's by more than the bound, the way its advantage wants it, gets no gradient.

Sequence-level losses (GSPO, RLOO) put a completion's mean or summed log-probabilities in the place of each token's own
(`at_level`), and are the same arithmetic from there on.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from configs.formulas import Advantage, Aggregation, Ratio

ADVANTAGE_EPSILON = 1e-6
MAX_LOG_RATIO = 20.0  # exp of it is finite in float32 with room to multiply

Float64Array = NDArray[np.float64]


def group_advantages(rewards_N: Float64Array, groups_N: NDArray[np.int64], *, advantage: Advantage) -> Float64Array:
    """A = (r - mean) / (std + 1e-6) inside each group (GRPO, Shao et al. 2024, section 4.1.2); exactly 0 where all are
    equal.

    "mean_only" leaves the division out (Dr. GRPO, Liu et al. 2025, section 3.2). "leave_one_out" compares with the mean
    of the other members: A = G / (G - 1) · (r - mean) (RLOO, Ahmadian et al. 2024, section 2.2).
    """
    advantages_N = np.zeros_like(rewards_N)
    for group in np.unique(groups_N):
        members = groups_N == group
        rewards = rewards_N[members]
        if rewards.min() == rewards.max():
            continue  # the mean of equal numbers can be off by a rounding, which the division would blow up
        centred = rewards - rewards.mean()
        if advantage == "leave_one_out":
            centred *= len(rewards) / (len(rewards) - 1)
        elif advantage != "mean_only":
            centred /= rewards.std(ddof=1 if advantage == "unbiased_std" else 0) + ADVANTAGE_EPSILON
        advantages_N[members] = centred
    return advantages_N


def batch_advantages(returns_K: Float64Array) -> Float64Array:
    """A = (R - mean) / (std + 1e-6) over all tokens of the batch (REINFORCE++, Hu et al. 2025, section 3)."""
    if returns_K.size == 0 or returns_K.min() == returns_K.max():
        return np.zeros_like(returns_K)
    advantages_K: Float64Array = (returns_K - returns_K.mean()) / (returns_K.std() + ADVANTAGE_EPSILON)
    return advantages_K


def penalised_returns(reward: float, penalties_C: Float64Array) -> Float64Array:
    """What follows each token of one completion: its reward less the KL penalties from there on.

    R_t = r - Σ_{i >= t} β · (log π(i) - log π_reference(i)) (REINFORCE++, Hu et al. 2025, section 3, without discount).
    R_0 is the reward of RLOO (Ahmadian et al. 2024, eq. 2).
    """
    return reward - np.cumsum(penalties_C[::-1])[::-1]


def overlong_penalties(lengths_N: NDArray[np.int64], *, limit: int, buffer: int) -> Float64Array:
    """0 up to `limit - buffer` tokens, then falling by 1 / buffer a token, to -1 at `limit` (DAPO, Yu et al. 2025,
    eq. 13, soft overlong punishment)."""
    if buffer == 0:
        return np.zeros(len(lengths_N))
    return -np.clip((lengths_N - (limit - buffer)) / buffer, 0.0, 1.0)


def token_weights(lengths_N: NDArray[np.int64], *, aggregation: Aggregation, constant: int) -> Float64Array:
    """What one token of each row counts in the batch's loss, [N]. A weighted sum over all tokens is then the loss.

    "token": 1 / all tokens of the batch (DAPO, Yu et al. 2025, eq. 8). "sequence": 1 / (N · the row's tokens) (GRPO).
    "constant": 1 / (N · constant), the completion's token limit (Dr. GRPO). Rows without tokens count 0.
    """
    num_rows = len(lengths_N)
    if aggregation == "token":
        return np.full(num_rows, 1.0 / max(1, int(lengths_N.sum())))
    if aggregation == "sequence":
        return 1.0 / (num_rows * np.maximum(1, lengths_N))
    return np.full(num_rows, 1.0 / (max(1, num_rows) * constant))


def at_level(values_K: Tensor, owners_K: Tensor, *, ratio: Ratio) -> Tensor:
    """Log-probs as a ratio is made of them: each token's own; or its completion's mean ("sequence_mean": GSPO, Zheng et
    al. 2025, eq. 7) or sum ("sequence": a completion is one action, RLOO), repeated for each of its tokens.

    owners_K, int64: which completion each token belongs to. Sequence losses want the aggregation "sequence": the
    repetitions then add up to one loss a completion.
    """
    if ratio == "token" or not len(values_K):
        return values_K
    num_owners = int(owners_K.max()) + 1
    sums = values_K.new_zeros(num_owners).index_add(0, owners_K, values_K)
    if ratio == "sequence_mean":
        sums = sums / torch.bincount(owners_K, minlength=num_owners).clamp(min=1)
    return sums[owners_K]


def importance_weights(start_K: Tensor, behaviour_K: Tensor, *, cap: float | None) -> Tensor:
    """min(cap, exp(start - behaviour)), without gradient."""
    weights_K = (start_K - behaviour_K).detach().clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    return weights_K if cap is None else weights_K.clamp(max=cap)


def probability_ratios(log_probs_K: Tensor, start_K: Tensor, weights_K: Tensor) -> Tensor:
    """exp(log_probs - start) · weights: see the top of this file."""
    return (log_probs_K - start_K.detach()).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp() * weights_K


def clipped_losses(
    ratios_K: Tensor, advantages_K: Tensor, *, clip_low: float, clip_high: float, dual_clip: float | None
) -> Tensor:
    """max(-A·ratio, -A·clip(ratio, 1 - low, 1 + high)) for each token (PPO, Schulman et al. 2017, eq. 7).

    `dual_clip` c > 1 bounds it from above by -c·A where A < 0 (Ye et al. 2020, eq. 5).
    """
    clipped_K = ratios_K.clamp(1.0 - clip_low, 1.0 + clip_high)
    losses_K = torch.maximum(-advantages_K * ratios_K, -advantages_K * clipped_K)
    if dual_clip is None:
        return losses_K
    return torch.where(advantages_K < 0, torch.minimum(losses_K, -dual_clip * advantages_K), losses_K)


def k3(log_probs_K: Tensor, reference_K: Tensor) -> Tensor:
    """exp(d) - d - 1, d = reference - log_probs: over tokens that the policy drew, its mean is KL(policy ‖ reference).

    Never below 0 (Schulman 2020, "Approximating KL divergence", estimator k3).
    """
    d_K = (reference_K - log_probs_K).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    return d_K.exp() - d_K - 1.0


def effective_sample_share(weights_K: Tensor) -> float:
    """(Σw)² / (K · Σw²): 1 where all weights are equal, 1/K where one token has all the weight."""
    weights_K = weights_K.double()
    return float(weights_K.sum() ** 2 / (len(weights_K) * (weights_K**2).sum()))
