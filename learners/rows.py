"""From a batch's episodes to what a policy-gradient step reads: samples, advantages, and what each token counts.

Shapes: N rows (episodes) of the batch, in its order; M of them are used.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from configs.formulas import Advantage
from configs.schema import Learner as Settings
from contracts.errors import LearnerError
from contracts.records import Batch, Episode, FloatArray
from learners.losses import (
    Float64Array,
    batch_advantages,
    group_advantages,
    overlong_penalties,
    penalised_returns,
    token_weights,
)
from learners.packing import Sample


@dataclass(frozen=True, kw_only=True)
class Rows:
    """The M rows that a step computes. Normalisers and statistics are over all rows that count."""

    samples: tuple[Sample, ...]
    behaviours: tuple[FloatArray, ...]  # log-probs the engine reported, of each sample's acted tokens
    advantages: tuple[Float64Array, ...]  # of each sample's acted tokens
    token_weights_M: Float64Array  # what one token counts in the batch's loss
    cuts: tuple[int, ...]  # samples in each micro-batch; (): the learner's own rule
    stats: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Shares:
    """What each of the N rows counts in the batch's loss, before anything is computed."""

    rewards_N: Float64Array
    groups_N: NDArray[np.int64]
    spread_N: NDArray[np.bool_]  # whether the rewards of a row's group differ
    lengths_N: NDArray[np.int64]  # acted tokens
    counted_N: NDArray[np.bool_]
    advantages: list[Float64Array]  # N of each row's acted tokens
    token_weights_N: Float64Array

    def influences(self) -> Float64Array:
        """Σ over a row's tokens of |advantage| · what one token counts, [N]: how hard the row pulls at the weights at
        the step's start, but for the length of each token's own gradient."""
        sums = [float(np.abs(one).sum()) for one in self.advantages]
        influences: Float64Array = self.token_weights_N * np.asarray(sums)
        return influences


Gaps = Callable[[Sequence[Sample]], Sequence[FloatArray]]


def read_rows(
    batch: Batch,
    episodes: Sequence[Episode],
    *,
    settings: Settings,
    max_tokens: int,
    log_ratios: Gaps | None = None,
) -> Rows:
    """Raises LearnerError where batch and episodes do not fit, or a reward or an action is missing.

    Rows without gradient (every advantage exactly 0, no KL term in the loss, no loss of the user's own) are left out of
    the computation (`skip_zero_spread`), and still counted by the normalisers. Under dynamic sampling a group without
    spread counts nowhere: a batch cut for it has none, one from a log that was recorded without it gets smaller.
    `log_ratios` gives log π - log π_reference of each sample's acted tokens, where the KL term is in the reward.
    """
    rewards_N = _rewards(batch, episodes)
    samples = [sample_of(episode) for episode in episodes]
    gaps = None if log_ratios is None else log_ratios(samples)
    shares = _share(batch, episodes, rewards_N, gaps, settings=settings, max_tokens=max_tokens)
    used_N = shares.counted_N.copy()
    if settings.skip_zero_spread and not _has_other_gradient(settings):
        used_N &= np.asarray([bool(one.any()) for one in shares.advantages])
    used = np.flatnonzero(used_N)
    behaviours = [np.concatenate([step.log_probs for step in episode.steps]) for episode in episodes]
    stats = _stats(rewards_N, shares.groups_N, shares.spread_N, shares.lengths_N)
    stats["advantage_std"] = float(np.std([one.mean() for one in shares.advantages]))
    if gaps is not None:
        stats["kl_reference"] = float(np.concatenate(gaps).mean())
    return Rows(
        samples=tuple(samples[place] for place in used),
        behaviours=tuple(behaviours[place] for place in used),
        advantages=tuple(shares.advantages[place] for place in used),
        token_weights_M=shares.token_weights_N[used],
        cuts=_cuts(batch, used_N),
        stats=stats,
    )


def read_shares(batch: Batch, episodes: Sequence[Episode], *, settings: Settings, max_tokens: int) -> Shares:
    """As `read_rows`, without the model: a KL term in the reward is left out. Raises LearnerError."""
    return _share(batch, episodes, _rewards(batch, episodes), None, settings=settings, max_tokens=max_tokens)


def _share(
    batch: Batch,
    episodes: Sequence[Episode],
    rewards_N: Float64Array,
    gaps: Sequence[FloatArray] | None,
    *,
    settings: Settings,
    max_tokens: int,
) -> Shares:
    formula = settings.formula()
    lengths_N = np.asarray([sum(len(step.action) for step in one.steps) for one in episodes], dtype=np.int64)
    groups_N = np.asarray([row.lease for row in batch.rows], dtype=np.int64)
    spread_N = _has_spread(rewards_N, groups_N)
    counted_N = spread_N if formula.dynamic_sampling else np.ones(len(episodes), dtype=np.bool_)
    scores_N = rewards_N + overlong_penalties(lengths_N, limit=max_tokens, buffer=settings.overlong_tokens)
    if settings.shuffle_rewards:
        scores_N = np.random.default_rng(batch.seed).permutation(scores_N)
    gaps = [np.zeros(length, dtype=np.float32) for length in lengths_N] if gaps is None else gaps
    cost = settings.kl_coefficient
    returns = [
        penalised_returns(score, cost * gap.astype(np.float64)) for score, gap in zip(scores_N, gaps, strict=True)
    ]
    weights_N = np.zeros(len(episodes))
    counted = lengths_N[counted_N]
    weights_N[counted_N] = token_weights(counted, aggregation=formula.aggregation, constant=max_tokens)
    weights_N *= np.asarray([row.weight for row in batch.rows])
    return Shares(
        rewards_N=rewards_N,
        groups_N=groups_N,
        spread_N=spread_N,
        lengths_N=lengths_N,
        counted_N=counted_N,
        advantages=_advantages(returns, groups_N, counted_N, advantage=formula.advantage),
        token_weights_N=weights_N,
    )


def sample_of(episode: Episode) -> Sample:
    """All steps of a text episode as one prompt and one completion; what the environment said is not `acted`."""
    first, *later = episode.steps
    pieces, acted = [first.action], [np.ones(len(first.action), dtype=np.bool_)]
    for step in later:
        pieces += [step.observation, step.action]
        acted += [np.zeros(len(step.observation), dtype=np.bool_), np.ones(len(step.action), dtype=np.bool_)]
    return Sample(
        prompt_ids=first.observation.astype(np.int32),
        completion_ids=np.concatenate(pieces).astype(np.int32),
        acted=np.concatenate(acted) if later else None,
    )


def _rewards(batch: Batch, episodes: Sequence[Episode]) -> Float64Array:
    """The episodes' rewards, after every check that needs no tensors."""
    if not batch.rows or len(batch.rows) != len(episodes):
        raise LearnerError(f"step {batch.step}: {len(batch.rows)} rows and {len(episodes)} episodes")
    rewards: list[float] = []
    for row, episode in zip(batch.rows, episodes, strict=True):
        where = f"step {batch.step}, episode {episode.episode_id}"
        if episode.lease != row.lease and not row.replayed:
            raise LearnerError(f"{where}: it is of another group than its row")
        if episode.reward is None or not math.isfinite(episode.reward):
            raise LearnerError(f"{where}: its reward is {episode.reward}")
        if not episode.steps or len(episode.steps[0].observation) == 0:
            raise LearnerError(f"{where}: it has no prompt")
        if any(len(step.action) == 0 or len(step.action) != len(step.log_probs) for step in episode.steps):
            raise LearnerError(f"{where}: a step has no action, or another number of log-probs than tokens")
        rewards.append(episode.reward)
    return np.asarray(rewards, dtype=np.float64)


def _has_other_gradient(settings: Settings) -> bool:
    """Whether a row may have a gradient though its advantage is 0."""
    return ":" in settings.loss or (settings.kl_coefficient > 0.0 and settings.formula().kl_in == "loss")


def _stats(
    rewards_N: Float64Array, groups_N: NDArray[np.int64], spread_N: NDArray[np.bool_], lengths_N: NDArray[np.int64]
) -> dict[str, float]:
    return {
        "reward_mean": float(rewards_N.mean()),
        "reward_std": float(rewards_N.std()),
        "zero_spread_groups": float(len(np.unique(groups_N[~spread_N]))),
        "groups": float(len(np.unique(groups_N))),
        "episodes": float(len(rewards_N)),
        "tokens": float(lengths_N.sum()),
        "completion_tokens_mean": float(lengths_N.mean()),
    }


def _has_spread(rewards_N: Float64Array, groups_N: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether the rewards of a row's group differ, for each row."""
    spread_N = np.zeros(len(rewards_N), dtype=np.bool_)
    for group in np.unique(groups_N):
        members = groups_N == group
        spread_N[members] = rewards_N[members].min() != rewards_N[members].max()
    return spread_N


def _advantages(
    returns: Sequence[Float64Array],
    groups_N: NDArray[np.int64],
    counted_N: NDArray[np.bool_],
    *,
    advantage: Advantage,
) -> list[Float64Array]:
    """Of each row's tokens. Group advantages are of a row's whole return; the batch's also of each token's."""
    if advantage != "batch_std":
        scores_N = np.asarray([one[0] for one in returns])
        advantages_N = group_advantages(scores_N, groups_N, advantage=advantage)
        return [np.full(len(one), value) for one, value in zip(returns, advantages_N, strict=True)]
    cuts = np.cumsum([len(one) for one in returns])[:-1]
    counted_K = np.repeat(counted_N, [len(one) for one in returns])
    advantages_K = np.zeros(len(counted_K))
    advantages_K[counted_K] = batch_advantages(np.concatenate(returns)[counted_K])
    return np.split(advantages_K, cuts)


def _cuts(batch: Batch, used_N: NDArray[np.bool_]) -> tuple[int, ...]:
    """The batch's micro-batches without the rows that are left out."""
    if not batch.micro_batches:
        return ()
    if sum(batch.micro_batches) != len(used_N) or min(batch.micro_batches) < 1:
        raise LearnerError(f"step {batch.step}: micro-batches {batch.micro_batches} do not make up {len(used_N)} rows")
    parts = np.split(used_N, np.cumsum(batch.micro_batches)[:-1])
    return tuple(int(part.sum()) for part in parts if part.any())
