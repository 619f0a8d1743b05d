"""The kept inputs of the fuzzer, and as many damaged ones as a unit test may cost."""

from __future__ import annotations

import random

import pytest

from tests.fuzz.arrow import CORPUS, find_body, try_input

INPUTS = sorted(CORPUS.iterdir())


def test_the_corpus_is_there() -> None:
    assert len(INPUTS) >= 4


@pytest.mark.parametrize("part", range(8))
def test_kept_inputs_are_refused_or_read(part: int) -> None:
    for file in INPUTS[part::8]:
        try_input(file.read_bytes())


def test_damaged_messages_are_refused_or_read() -> None:
    draw = random.Random(0)
    for _ in range(400):
        data = bytearray(draw.choice(INPUTS).read_bytes())
        start = draw.choice([0, min(find_body(bytes(data)), len(data) - 1)])
        for _ in range(draw.randint(1, 8)):
            data[draw.randrange(start, len(data))] = draw.choice([0, 1, 0x7F, 0x80, 0xFF, draw.randrange(256)])
        try_input(bytes(data))
