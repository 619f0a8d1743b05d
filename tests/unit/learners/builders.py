"""Small models, groups of episodes, and learners for the learners' tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from configs.schema import Learner, Lora, ModelInit
from contracts.records import Batch, Episode, Purpose, Row, Span, Step, StopReason
from learners.checkpoint import load_state
from learners.policy_gradient import PolicyGradientLearner
from models.init import init_model

SMALL = ModelInit(layers=2, width=16, heads=2, feed_forward=24, max_positions=64)
SETTINGS = Learner(
    aggregation="token", clip_high=0.28, precision="fp32", warmup_steps=0, learning_rate=1e-3, gradient_clip=1e9
)
MAX_TOKENS = 8


def make_model(folder: Path, *, seed: int = 0) -> Path:
    init_model(folder, settings=SMALL, seed=seed)
    return folder


def make_learner(folder: Path, *, lora: Lora = Lora(), **settings: Any) -> PolicyGradientLearner:  # noqa: B008 (frozen)
    changed = SETTINGS.model_copy(update=settings)
    return PolicyGradientLearner(folder, changed, seed=0, temperature=1.0, max_tokens=MAX_TOKENS, lora=lora)


def make_batch(
    rewards: Sequence[Sequence[float]] = ((1, 0, 0, 0.5), (0.2, 0.2, 0.2, 0.2), (0, 1, 1, 0)),
    *,
    step: int = 1,
    seed: int = 0,
) -> tuple[Batch, list[Episode]]:
    """One group for each list of rewards: random short prompts and completions, log-probs somewhat off."""
    generator = np.random.default_rng([seed, step])
    rows: list[Row] = []
    episodes: list[Episode] = []
    for group, returns in enumerate(rewards):
        prompt_ids = generator.integers(97, 123, generator.integers(2, 9)).astype(np.int32)
        for member, reward in enumerate(returns):
            completion_ids = generator.integers(97, 123, generator.integers(1, MAX_TOKENS + 1)).astype(np.int32)
            lsn = len(episodes)
            rows.append(Row(episode_lsn=lsn, reward_lsn=lsn, lease=100 + group))
            episodes.append(
                Episode(
                    episode_id=f"{step}-{group}-{member}",
                    lease=100 + group,
                    member=member,
                    task_id=f"task-{group}",
                    environment="none",
                    environment_version="1",
                    purpose=Purpose.TRAIN,
                    steps=(
                        Step(
                            observation=prompt_ids,
                            action=completion_ids,
                            # A model that knows nothing gives each of 258 tokens about log(1 / 258) = -5.55.
                            log_probs=generator.normal(-5.55, 0.3, len(completion_ids)).astype(np.float32),
                        ),
                    ),
                    spans=(Span(start=0, version=0),),
                    stop_reason=StopReason.TERMINATED,
                    reward=reward,
                )
            )
    return Batch(branch=0, step=step, parent_version=step - 1, rows=tuple(rows), seed=seed), episodes


def with_log_probs(episode: Episode, log_probs: np.ndarray[Any, np.dtype[np.float32]]) -> Episode:
    return replace(episode, steps=(replace(episode.steps[0], log_probs=log_probs),))


def first_gradient(
    learner: PolicyGradientLearner, folder: Path, batch: Batch, episodes: Sequence[Episode]
) -> Mapping[str, Tensor]:
    """The gradient of a fresh learner's first step: Adam's first moment is then (1 - beta1) times it."""
    learner.step(batch, episodes)
    moments = load_state(folder, learner.save(str(folder)))[0]["optimizer"]
    scale = 1.0 - SETTINGS.betas[0]
    return {name.removeprefix("exp_avg."): m / scale for name, m in moments.items() if name.startswith("exp_avg.")}
