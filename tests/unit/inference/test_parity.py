"""The parity guard's arithmetic and its probes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from contracts.protocols import Completion
from contracts.records import FloatArray, IntArray, StopReason
from inference.parity import KV_BLOCK_TOKENS, gap, probe_requests, text_gap


def _array(values: list[float]) -> FloatArray:
    return np.array(values, dtype=np.float32)


def test_the_gap_is_the_mean_over_tokens_not_over_completions() -> None:
    engine = [_array([-1.0, -2.0, -3.0]), _array([-1.0])]
    learner = [_array([-1.0, -2.5, -3.0]), _array([-1.5])]
    assert gap(engine, learner) == pytest.approx((0 + 0.5 + 0 + 0.5) / 4)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_value_that_is_not_finite_is_an_infinite_gap(bad: float) -> None:
    """NaN > limit is False: a plain mean would let it pass."""
    assert gap([_array([-1.0, bad])], [_array([-1.0, -1.0])]) == float("inf")
    assert gap([_array([-1.0, -1.0])], [_array([-1.0, bad])]) == float("inf")


def test_nothing_to_compare_is_an_infinite_gap() -> None:
    assert gap([], []) == float("inf")
    assert gap([_array([-1.0]), _array([])], [_array([-1.0]), _array([])]) == float("inf")


def test_a_learner_that_scored_other_completions_is_our_mistake() -> None:
    with pytest.raises(ValueError, match="shorter"):
        gap([_array([-1.0])], [])


def test_probes_reach_past_a_cache_block_and_are_the_same_each_time() -> None:
    probes = probe_requests(50, num=5, seed=3)
    assert len({one.request_id for one in probes}) == 5
    for one, again in zip(probes, probe_requests(50, num=5, seed=3), strict=True):
        assert len(one.prompt_ids) > KV_BLOCK_TOKENS
        assert one.prompt_ids.dtype == np.int32
        assert one.prompt_ids.min() >= 0
        assert one.prompt_ids.max() < 50
        assert one.prompt_ids.tolist() == again.prompt_ids.tolist()
        assert one.sampling == again.sampling
        assert one.sampling.stop_token_ids == ()
        assert one.sampling.temperature == 1.0
    assert len({one.prompt_ids.tobytes() for one in probes}) == 5


def test_other_seeds_make_other_probes() -> None:
    first, second = probe_requests(50, seed=0)[0], probe_requests(50, seed=1)[0]
    assert first.prompt_ids.tolist() != second.prompt_ids.tolist()


def test_the_engine_that_is_furthest_off_counts_and_equal_answers_are_scored_once() -> None:
    probes = probe_requests(50, num=2)
    asked: list[int] = []

    def score(completions: Sequence[tuple[IntArray, IntArray]]) -> list[FloatArray]:
        asked.append(len(completions))
        return [np.full(len(ids), -1.0, dtype=np.float32) for _, ids in completions]

    def answers(tokens: list[int], log_prob: float) -> list[Completion]:
        return [
            Completion(
                request_id=one.request_id,
                token_ids=np.array(tokens, dtype=np.int32),
                log_probs=np.full(len(tokens), log_prob, dtype=np.float32),
                spans=(),
                stop_reason=StopReason.LENGTH,
            )
            for one in probes
        ]

    measure = text_gap(probes, score=score)
    assert measure([answers([1, 2], -1.0), answers([1, 2], -1.5)]) == pytest.approx(0.5)
    assert measure([answers([1, 2], -1.25), answers([3, 4], -1.0)]) == pytest.approx(0.25)
    assert asked == [2, 4]
