"""What an episode must be before the store keeps it."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np

from contracts.errors import StoreError
from contracts.records import Episode, FloatArray, Purpose, Step


def check_episode(episode: Episode) -> None:
    """Refuse an episode whose content no learner could read. Raises StoreError with the reason."""
    reason = _find_reason(episode)
    if reason:
        raise StoreError(
            f"episode {episode.episode_id} (lease {episode.lease}, member {episode.member}, {episode.task_id}) "
            f"is not kept: {reason}"
        )


def _find_reason(episode: Episode) -> str:
    return _check_head(episode) or _check_reward(episode) or _check_steps(episode) or _check_spans(episode)


def _check_head(episode: Episode) -> str:
    if episode.purpose is not Purpose.TRAIN:
        return f"its purpose is {episode.purpose.value}; only training episodes belong to a lease"
    if not episode.episode_id:
        return "it has no episode_id"
    if episode.seq < 0:
        return f"its sequence number is {episode.seq}"
    return ""


def _check_reward(episode: Episode) -> str:
    if episode.reward is None:
        if episode.valid and episode.reward_deadline is None:
            return "it has neither a reward nor a deadline for one"
        return ""
    if not episode.valid:
        return f"it has a reward although it ended with {episode.stop_reason.value}"
    if not math.isfinite(episode.reward):
        return f"its reward is {episode.reward}"
    return ""


def _check_steps(episode: Episode) -> str:
    if not episode.steps:
        return "it has no step"
    for number, step in enumerate(episode.steps):
        reason = _check_text(step) if step.rewards is None else _check_stretch(step, step.rewards)
        if not reason and not np.isfinite(step.log_probs).all():
            reason = "a log-probability is not finite"
        if reason:
            return f"step {number}: {reason}"
    if episode.valid and not any(step.action.size for step in episode.steps):
        return "no step has an action"
    return ""


def _check_text(step: Step) -> str:
    if step.observation.ndim != 1 or step.action.ndim != 1:
        return "observation and action have one dimension each"
    if step.log_probs.dtype != np.float32:
        return f"log_probs are {step.log_probs.dtype}, not float32"
    if step.log_probs.ndim != 1:
        return f"log_probs have {step.log_probs.ndim} dimensions"
    if step.action.dtype == np.int32 and len(step.log_probs) != len(step.action):
        return f"{len(step.action)} action tokens have {len(step.log_probs)} log_probs"
    return ""


def _check_stretch(step: Step, rewards: FloatArray) -> str:
    num = len(step.action)
    if step.observation.ndim != 2 or step.observation.dtype != np.float32 or len(step.observation) != num + 1:
        return (
            f"observations are {step.observation.dtype} {step.observation.shape}; "
            f"{num} actions need float32 ({num + 1}, size)"
        )
    for name, column in (("log_probs", step.log_probs), ("rewards", rewards)):
        if column.shape != (num,) or column.dtype != np.float32:
            return f"{name} are {column.dtype} {column.shape}; {num} actions need float32 ({num},)"
    if not np.isfinite(step.observation).all() or not np.isfinite(rewards).all():
        return "an observation or a reward is not finite"
    return ""


def _check_spans(episode: Episode) -> str:
    starts = [span.start for span in episode.spans]
    if not starts or starts[0] != 0:
        return f"its version spans start at {starts[:1]}, not at 0"
    if any(later <= earlier for earlier, later in pairwise(starts)):
        return f"its version spans do not rise: {starts}"
    num_tokens = sum(step.action.size for step in episode.steps)
    if starts[-1] and starts[-1] >= num_tokens:
        return f"a version span starts at token {starts[-1]} of {num_tokens}"
    return ""
