"""The parity guard's arithmetic and its probes."""

from __future__ import annotations

import numpy as np
import pytest

from contracts.records import FloatArray
from inference.parity import KV_BLOCK_TOKENS, gap, probe_requests


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
