"""What an engine takes, and its answer where it does not."""

from __future__ import annotations

import numpy as np
import pytest

from contracts.protocols import Request, Sampling
from contracts.records import StopReason
from inference.requests import failed_completion, is_servable


def _request(prompt: list[int], max_tokens: int) -> Request:
    ids = np.array(prompt, dtype=np.int32)
    return Request(request_id="r", prompt_ids=ids, sampling=Sampling(max_tokens=max_tokens))


@pytest.mark.parametrize(
    ("prompt", "max_tokens", "servable"),
    [
        ([1, 2, 3], 7, True),
        ([1, 2, 3], 8, False),
        ([0, 9], 1, True),
        ([0, 10], 1, False),
        ([-1], 1, False),
        ([], 1, False),
        ([1], 0, False),
    ],
)
def test_a_request_needs_known_tokens_and_room(prompt: list[int], max_tokens: int, servable: bool) -> None:
    assert is_servable(_request(prompt, max_tokens), max_positions=10, vocab_size=10) is servable


def test_a_failed_completion_is_empty_and_says_why() -> None:
    failed = failed_completion(_request([1], 1), version=4)
    assert failed.stop_reason is StopReason.ENGINE_ERROR
    assert failed.request_id == "r"
    assert len(failed.token_ids) == len(failed.log_probs) == 0
    assert failed.spans[0].start == 0
    assert failed.spans[0].version == 4
