"""From a batch's episodes to what a policy-gradient step reads: samples, advantages, and what each token counts.

Shapes: N rows (episodes) of the batch, in its order; M of them are used.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from configs.schema import Learner as Settings
from contracts.errors import LearnerError
from contracts.records import Batch, Episode, FloatArray
from learners.losses import Float64Array, group_advantages, token_weights
from learners.packing import Sample


@dataclass(frozen=True, kw_only=True)
class Rows:
    """The M rows that a step computes. Normalisers and statistics are over all N."""

    samples: tuple[Sample, ...]
    behaviours: tuple[FloatArray, ...]  # log-probs the engine reported, of each sample's acted tokens
    advantages_M: Float64Array
    token_weights_M: Float64Array  # what one token counts in the batch's loss
    cuts: tuple[int, ...]  # samples in each micro-batch; (): the learner's own rule
    stats: dict[str, float]


def read_rows(batch: Batch, episodes: Sequence[Episode], *, settings: Settings, max_tokens: int) -> Rows:
    """Raises LearnerError where batch and episodes do not fit, or a reward or an action is missing.

    Rows whose advantage is exactly 0 have no gradient unless there is a KL term: they are left out of the computation
    (`skip_zero_spread`), and still counted by the normalisers.
    """
    rewards_N = _rewards(batch, episodes)
    if settings.shuffle_rewards:
        rewards_N = np.random.default_rng(batch.seed).permutation(rewards_N)
    groups_N = np.asarray([row.lease for row in batch.rows], dtype=np.int64)
    advantages_N = group_advantages(rewards_N, groups_N, normalisation=settings.advantage)
    samples = [sample_of(episode) for episode in episodes]
    behaviours = [np.concatenate([step.log_probs for step in episode.steps]) for episode in episodes]
    lengths_N = np.asarray([len(behaviour) for behaviour in behaviours], dtype=np.int64)
    weights_N = token_weights(lengths_N, aggregation=settings.aggregation, constant=max_tokens)
    weights_N *= np.asarray([row.weight for row in batch.rows])
    used_N = np.ones(len(samples), dtype=np.bool_)
    if settings.skip_zero_spread and settings.kl_coefficient == 0.0:
        used_N = advantages_N != 0.0
    used = np.flatnonzero(used_N)
    return Rows(
        samples=tuple(samples[place] for place in used),
        behaviours=tuple(behaviours[place] for place in used),
        advantages_M=advantages_N[used],
        token_weights_M=weights_N[used],
        cuts=_cuts(batch, used_N),
        stats={
            "reward_mean": float(rewards_N.mean()),
            "reward_std": float(rewards_N.std()),
            "advantage_std": float(advantages_N.std()),
            "zero_spread_groups": float(
                sum(not advantages_N[groups_N == group].any() for group in np.unique(groups_N))
            ),
            "groups": float(len(np.unique(groups_N))),
            "episodes": float(len(episodes)),
            "tokens": float(lengths_N.sum()),
            "completion_tokens_mean": float(lengths_N.mean()),
        },
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
        if episode.lease != row.lease:
            raise LearnerError(f"{where}: it is of another group than its row")
        if episode.reward is None or not math.isfinite(episode.reward):
            raise LearnerError(f"{where}: its reward is {episode.reward}")
        if not episode.steps or len(episode.steps[0].observation) == 0:
            raise LearnerError(f"{where}: it has no prompt")
        if any(len(step.action) == 0 or len(step.action) != len(step.log_probs) for step in episode.steps):
            raise LearnerError(f"{where}: a step has no action, or another number of log-probs than tokens")
        rewards.append(episode.reward)
    return np.asarray(rewards, dtype=np.float64)


def _cuts(batch: Batch, used_N: NDArray[np.bool_]) -> tuple[int, ...]:
    """The batch's micro-batches without the rows that are left out."""
    if not batch.micro_batches:
        return ()
    if sum(batch.micro_batches) != len(used_N) or min(batch.micro_batches) < 1:
        raise LearnerError(f"step {batch.step}: micro-batches {batch.micro_batches} do not make up {len(used_N)} rows")
    parts = np.split(used_N, np.cumsum(batch.micro_batches)[:-1])
    return tuple(int(part.sum()) for part in parts if part.any())
