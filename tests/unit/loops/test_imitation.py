"""What a warm start is shown: every item once, and where there are several turns, once more after a wrong answer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from contracts.records import IntArray
from loops.imitation import pairs_to_imitate, spoil
from tests.unit.loops.test_turns import END, AddOne, DigitCodec


class KnownSums(AddOne):
    """Knows its answers; a wrong one earns the remark of how far it is off."""

    def targets(self, split: str, indices: Sequence[int]) -> list[str]:
        return [str(index + 1) for index in indices]


class Codec(DigitCodec):
    def encode_completion(self, text: str) -> IntArray:
        return np.array([*(int(letter) for letter in text), END], dtype=np.int32)


def shown(max_turns: int) -> list[tuple[list[int], list[int]]]:
    found = pairs_to_imitate(KnownSums(max_turns=max_turns), Codec(), num_items=6, max_turns=max_turns, seed=0)
    return [(prompt.tolist(), completion.tolist()) for prompt, completion in found]


def test_one_turn_shows_every_item_once() -> None:
    assert shown(1) == [([i], [i + 1, END]) for i in range(6)]


def test_several_turns_show_a_wrong_answer_and_its_remark_too() -> None:
    """Answers have one letter, so that the wrong one is the neighbour's."""
    wrong = [6, 1, 2, 3, 4, 5]
    later = [([i, wrong[i], END, 8, abs(wrong[i] - i - 1)], [i + 1, END]) for i in range(6)]
    assert shown(3) == shown(1) + later


@pytest.mark.parametrize("seed", range(5))
def test_a_spoiled_answer_has_the_length_of_the_right_one(seed: int) -> None:
    random = np.random.default_rng(seed)
    spoiled = spoil("abcdefghij", "XYZ", random)
    assert len(spoiled) == 10
    changed = [(a, b) for a, b in zip(spoiled, "abcdefghij", strict=True) if a != b]
    assert 1 <= len(changed) < 10
    assert {a for a, _ in changed} <= set("XYZ")
    assert spoil("", "X", random) == "X"
