"""Packing: every completion token is predicted once, from its own prompt and forerunners alone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from learners.packing import ROW_TOKENS, MicroBatch, Sample, pack


def sample(prompt: list[int], completion: list[int]) -> Sample:
    return Sample(prompt_ids=np.array(prompt, dtype=np.int32), completion_ids=np.array(completion, dtype=np.int32))


IDS = st.lists(st.integers(1, 250), min_size=1, max_size=60)
GROUPS = st.lists(st.tuples(IDS, st.lists(IDS, min_size=1, max_size=5)), min_size=1, max_size=6)


def flatten(groups: list[tuple[list[int], list[list[int]]]]) -> list[Sample]:
    return [sample(prompt, completion) for prompt, completions in groups for completion in completions]


def read_back(batch: MicroBatch) -> dict[int, list[tuple[list[int], int]]]:
    """For each sample, its predicted tokens: (what the place of prediction can see, the target)."""
    num_columns = batch.tokens_RL.shape[1]
    seen: dict[int, list[tuple[list[int], int]]] = {}
    for source, target, owner in zip(batch.sources_K, batch.targets_K, batch.owners_K, strict=True):
        row, column = divmod(int(source), num_columns)
        visible = np.flatnonzero(batch.visible_RLL[row, column])
        assert batch.positions_RL[row, visible].tolist() == list(range(len(visible)))
        seen.setdefault(int(owner), []).append((batch.tokens_RL[row, visible].tolist(), int(target)))
    return seen


@given(GROUPS, st.integers(1, 400))
def test_each_token_is_predicted_once_from_prompt_and_forerunners(
    groups: list[tuple[list[int], list[list[int]]]], max_tokens: int
) -> None:
    samples = flatten(groups)
    predictions: dict[int, list[tuple[list[int], int]]] = {}
    for batch in pack(samples, max_tokens=max_tokens):
        assert batch.num_padded_tokens <= max_tokens or len(batch.tokens_RL) == 1
        assert not predictions.keys() & set(batch.samples)
        predictions.update(read_back(batch))
    for place, one in enumerate(samples):
        prompt, completion = one.prompt_ids.tolist(), one.completion_ids.tolist()
        assert predictions[place] == [(prompt + completion[:t], token) for t, token in enumerate(completion)]


@given(GROUPS)
def test_nobody_is_blind(groups: list[tuple[list[int], list[list[int]]]]) -> None:
    """A place that sees nothing would make the softmax undefined, also where there is only padding."""
    for batch in pack(flatten(groups), max_tokens=500):
        assert batch.visible_RLL.diagonal(axis1=1, axis2=2).all()


def test_a_group_shares_its_prompt() -> None:
    (batch,) = pack([sample([1, 2, 3], [10 + i, 20 + i, 30 + i]) for i in range(4)], max_tokens=1000)
    assert batch.tokens_RL.tolist() == [[1, 2, 3, 10, 20, 11, 21, 12, 22, 13, 23]]
    assert batch.positions_RL.tolist() == [[0, 1, 2, 3, 4, 3, 4, 3, 4, 3, 4]]
    assert batch.sources_K.tolist() == [2, 3, 4, 2, 5, 6, 2, 7, 8, 2, 9, 10]
    assert batch.targets_K.tolist() == [10, 20, 30, 11, 21, 31, 12, 22, 32, 13, 23, 33]


def test_a_long_prompt_makes_room_for_its_completions() -> None:
    prompt = list(range(1, ROW_TOKENS + 1))
    (batch,) = pack([sample(prompt, [1] * 9) for _ in range(4)], max_tokens=10_000)
    assert batch.tokens_RL.shape == (1, ROW_TOKENS + 4 * 8)


def test_only_what_the_policy_chose_is_predicted() -> None:
    acted = np.array([True, False, False, True])
    (batch,) = pack(
        [Sample(prompt_ids=np.array([1], np.int32), completion_ids=np.array([5, 6, 7, 8], np.int32), acted=acted)],
        max_tokens=99,
    )
    assert batch.tokens_RL.tolist() == [[1, 5, 6, 7]]
    assert (batch.sources_K.tolist(), batch.targets_K.tolist()) == ([0, 3], [5, 8])


def test_cuts_overrule_the_rule() -> None:
    samples = [sample([1, 2], [3] * length) for length in (9, 1, 5, 2)]
    assert [batch.samples for batch in pack(samples, max_tokens=1, cuts=(1, 3))] == [(0,), (1, 2, 3)]
    for wrong in ((1, 1), (4, 1), (0, 4)):
        with pytest.raises(ValueError, match="do not make up"):
            pack(samples, max_tokens=1, cuts=wrong)


def test_the_same_samples_are_always_packed_alike() -> None:
    samples = [sample([1, place % 5], [7] * (1 + place % 40)) for place in range(50)]
    first, second = pack(samples, max_tokens=300), pack(samples, max_tokens=300)
    assert len(first) > 3
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one.tokens_RL, other.tokens_RL)
        np.testing.assert_array_equal(one.sources_K, other.sources_K)


def test_padding_stays_small_when_lengths_are_spread() -> None:
    generator = np.random.default_rng(0)
    samples = [sample([place], [1] * int(generator.integers(1, 256))) for place in range(256)]
    batches = pack(samples, max_tokens=4096)
    real = sum(len(one.prompt_ids) + len(one.completion_ids) - 1 for one in samples)
    assert real / sum(batch.num_padded_tokens for batch in batches) > 0.85


def test_an_empty_prompt_is_refused() -> None:
    with pytest.raises(ValueError, match="without a prompt"):
        pack([sample([], [1])], max_tokens=10)
