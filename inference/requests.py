"""What both engines ask of a request before they take it, and what they answer when they cannot."""

from __future__ import annotations

import numpy as np

from contracts.protocols import Completion, Request
from contracts.records import Span, StopReason


def is_servable(request: Request, *, max_positions: int, vocab_size: int) -> bool:
    """Whether the model can answer: a prompt of known tokens, room for max_tokens more, at least one asked for."""
    ids, max_tokens = request.prompt_ids, request.sampling.max_tokens
    if not len(ids) or max_tokens < 1 or len(ids) + max_tokens > max_positions:
        return False
    return bool(ids.min() >= 0 and ids.max() < vocab_size)


def failed_completion(request: Request, *, version: int) -> Completion:
    """The answer to a request that could not be served: no tokens. The other requests of its call are not affected."""
    return Completion(
        request_id=request.request_id,
        token_ids=np.empty(0, dtype=np.int32),
        log_probs=np.empty(0, dtype=np.float32),
        spans=(Span(start=0, version=version),),
        stop_reason=StopReason.ENGINE_ERROR,
    )
