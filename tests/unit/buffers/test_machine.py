"""The whole store against its model, for a moment: `python -m tests.unit.buffers.machine --seconds 600` for longer."""

from __future__ import annotations

import pytest

from tests.unit.buffers.machine import run


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("examples", "steps"), [(6, 40), pytest.param(100, 60, marks=pytest.mark.slow)], ids=["short", "long"]
)
def test_the_store_does_what_its_model_does(examples: int, steps: int) -> None:
    run(number=1, examples=examples, steps=steps)
