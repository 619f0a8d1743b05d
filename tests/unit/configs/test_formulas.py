"""What the names of the losses stand for, and which key wins."""

from __future__ import annotations

import math

import pytest

from configs import formulas
from configs.formulas import FORMULAS, OWN, Formula
from configs.schema import Learner


def test_the_table_in_the_docstring_is_the_table() -> None:
    lines = [line.split("|")[1:-1] for line in (formulas.__doc__ or "").splitlines() if line.startswith("| ")][1:]
    told = {cells[0].strip(): [cell.strip() for cell in cells[1:]] for cells in lines}
    assert told == {name: described(one) for name, one in FORMULAS.items()}


def described(one: Formula) -> list[str]:
    bounds = [
        f"{bound:.0e}".replace("e-0", "e-") if bound < 0.01 else f"{bound}" for bound in (one.clip_low, one.clip_high)
    ]
    clip = "none" if math.isinf(one.clip_high) else ", ".join(bounds)
    return [one.advantage, one.ratio, clip, one.aggregation, one.kl_in, "yes" if one.dynamic_sampling else ""]


@pytest.mark.parametrize("name", FORMULAS)
def test_keys_left_alone_are_the_formulas(name: str) -> None:
    assert Learner(loss=name).formula() == FORMULAS[name]
    assert Learner(loss="mine:loss").formula() == OWN


def test_a_key_that_was_set_wins() -> None:
    got = Learner(loss="gspo", advantage="mean_only", aggregation="token", clip_low=0.0, clip_high=0.5).formula()
    assert got == Formula(
        ratio="sequence_mean", advantage="mean_only", aggregation="token", clip_low=0.0, clip_high=0.5
    )
    assert Learner(loss="dapo", dynamic_sampling=False).formula().dynamic_sampling is False
