"""Supervised fine-tuning: imitate given completions. The loss is the mean over a batch's completion tokens."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch

from configs.schema import WarmStart
from contracts.errors import LearnerError, UserError
from contracts.records import IntArray
from learners.optimizer import Optimizer, learning_rate
from learners.packing import Sample, pack
from learners.policy import PolicyModel

BETAS = (0.9, 0.99)
GRADIENT_CLIP = 1.0
MICRO_BATCH_TOKENS = 16_384  # padded tokens in one forward pass


def warm_start(
    model: PolicyModel,
    pairs: Sequence[tuple[IntArray, IntArray]],
    *,
    settings: WarmStart,
    seed: int,
    on_progress: Callable[[int, float], None] = lambda step, loss: None,
) -> dict[str, float]:
    """Fine-tune `model` in place on (prompt_ids, completion_ids) pairs; the end token belongs to the completion.

    AdamW, linear warm-up, then a half cosine to 0. The same pairs, settings and seed give the same weights. Calls
    `on_progress(step, loss)` after each step. Raises UserError without pairs, LearnerError where a loss is not finite.
    """
    if not pairs:
        raise UserError("a warm start", "there is no pair of prompt and completion", "set warm_start.steps to 0")
    started = time.perf_counter()
    optimizer = Optimizer(
        model.parameters(), betas=BETAS, weight_decay=settings.weight_decay, gradient_clip=GRADIENT_CLIP
    )
    samples = [Sample(prompt_ids=prompt, completion_ids=completion) for prompt, completion in pairs]
    loss, num_tokens = 0.0, 0
    order = _endless_order(len(samples), seed=seed)
    for step in range(1, settings.steps + 1):
        drawn = [samples[next(order)] for _ in range(settings.batch_size)]
        optimizer.clear()
        with model.learning(seed=seed + step):
            loss, count = _accumulate(model, drawn)
        num_tokens += count
        rate = learning_rate(
            step,
            base=settings.learning_rate,
            warmup_steps=settings.warmup_steps,
            decay_steps=settings.steps,
        )
        norm, updated = optimizer.step(rate=rate)
        if not updated:
            raise LearnerError(f"warm start, step {step}: loss {loss}, gradient norm {norm}; lower the learning rate")
        model.changed()
        on_progress(step, loss)
    optimizer.clear()
    return {"loss": loss, "tokens": float(num_tokens), "warm_start_s": time.perf_counter() - started}


def _accumulate(model: PolicyModel, samples: Sequence[Sample]) -> tuple[float, int]:
    """Add the gradient of the mean loss over all completion tokens; (loss, tokens)."""
    num_tokens = sum(len(sample.completion_ids) for sample in samples)
    total = 0.0
    for part in pack(samples, max_tokens=MICRO_BATCH_TOKENS):
        loss = -model.log_probs(part).sum() / num_tokens
        torch.autograd.backward(loss)
        total += float(loss.detach())
    return total, num_tokens


def _endless_order(count: int, *, seed: int) -> Iterator[int]:
    """Every place once, shuffled, then all again in another order, for ever."""
    generator = np.random.default_rng(seed)
    while True:
        yield from (int(place) for place in generator.permutation(count))
