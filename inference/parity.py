"""The parity guard's arithmetic: which prompts to probe an engine with, and how far it is from the learner.

The publisher generates the probes once before a push (so that the prefix cache holds their prompts) and once after it,
then compares the log-probs the engine reports with the learner's own for the same tokens. Scoring generated tokens
after a cached prompt sees what scoring prompts cannot: a prefix cache that still holds the old weights' keys.

What it does not cover: an error smaller than the limit. One small optimiser step moves log-probs by about 0.01, so a
single stale push passes; the error grows with each further one until it does not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from contracts.protocols import Completion, Request, Sampling
from contracts.records import FloatArray, IntArray

Score = Callable[[Sequence[tuple[IntArray, IntArray]]], list[FloatArray]]  # (prompt ids, completion ids) → log-probs

KV_BLOCK_TOKENS = 32  # what one block of an engine's prefix cache holds; only full blocks are ever reused
_TAIL_TOKENS = 8  # prompt tokens after the cached block


def probe_requests(
    vocab_size: int, *, block_size: int = KV_BLOCK_TOKENS, num: int = 8, max_tokens: int = 4, seed: int = 0
) -> list[Request]:
    """`num` random prompts one cache block and 8 tokens long, each answered with exactly `max_tokens` tokens.

    Sampled at temperature 1, where the learner's log-probs need no scaling. The engine's model must have at least
    block_size + 8 + max_tokens positions.
    """
    draws = np.random.default_rng(seed)
    return [
        Request(
            request_id=f"probe-{seed}-{i}",
            prompt_ids=draws.integers(0, vocab_size, block_size + _TAIL_TOKENS, dtype=np.int32),
            sampling=Sampling(max_tokens=max_tokens, temperature=1.0, seed=seed + i),
        )
        for i in range(num)
    ]


def text_gap(probes: Sequence[Request], *, score: Score) -> Callable[[Sequence[Sequence[Completion]]], float]:
    """How far the furthest engine's completions of `probes` are from the learner, which `score` asks: see `gap`.

    Engines that are right answer alike, so what several of them answered is scored once.
    """
    prompts = {request.request_id: request.prompt_ids for request in probes}

    def measure(answers: Sequence[Sequence[Completion]]) -> float:
        distinct = {(one.request_id, one.token_ids.tobytes()): one for completions in answers for one in completions}
        scored = score([(prompts[one.request_id], one.token_ids) for one in distinct.values()])
        mine = dict(zip(distinct, scored, strict=True))
        return max(
            gap(
                [one.log_probs for one in completions],
                [mine[one.request_id, one.token_ids.tobytes()] for one in completions],
            )
            for completions in answers
        )

    return measure


def gap(engine_log_probs: Sequence[FloatArray], learner_log_probs: Sequence[FloatArray]) -> float:
    """Mean |engine log-prob - learner log-prob| over all generated tokens or actions, in nats.

    Infinite where there is nothing to compare or a value is not finite: no verdict means not good.
    """
    gaps = [
        np.abs(reported.astype(np.float64) - learner)
        for reported, learner in zip(engine_log_probs, learner_log_probs, strict=True)
    ]
    tokens = np.concatenate(gaps) if gaps else np.empty(0)
    if not all(len(one) for one in gaps) or not tokens.size or not np.isfinite(tokens).all():
        return float("inf")
    return float(tokens.mean())
