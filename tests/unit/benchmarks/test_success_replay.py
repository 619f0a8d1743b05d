"""What the benchmark of success replay makes of its runs' rewards."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.success_replay import RUN, TASK, VARIANTS, compare, judge
from configs.loader import load


def rows(gains: list[float], control: list[float]) -> list[dict[str, Any]]:
    made = []
    for seed, (gain, other) in enumerate(zip(gains, control, strict=True)):
        start = 0.1 * (seed + 1)  # seeds differ by more than variants do
        for variant, reward in (("off", start), ("success", start + gain), ("failure", start + other)):
            made.append({"variant": variant, "seed": seed, "reward": reward})
    return made


def test_differences_are_paired_by_seed() -> None:
    """By hand: mean 0.02, deviation 0.01, Student's t of three 4.303."""
    gain = compare(rows([0.01, 0.02, 0.03], [0.0, 0.0, 0.0]), "success", "reward")
    assert gain["mean"] == pytest.approx(0.02)
    assert gain["high"] - gain["mean"] == pytest.approx(4.303 * 0.01 / 3**0.5)


@pytest.mark.parametrize(
    ("gains", "control", "met"),
    [
        ([0.09, 0.10, 0.11], [-0.02, 0.0, 0.02], [True, True]),
        ([-0.1, 0.1, 0.3], [-0.02, 0.0, 0.02], [False, True]),
        ([0.09, 0.10, 0.11], [0.09, 0.10, 0.11], [True, False]),
    ],
)
def test_the_gain_must_be_sure_and_the_controls_must_not(
    gains: list[float], control: list[float], met: list[bool]
) -> None:
    assert [goal["met"] for goal in judge(rows(gains, control))] == met


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_is_a_configuration(variant: str) -> None:
    config = load("configs/quickstart.yaml", [*TASK, *RUN, *VARIANTS[variant]])
    assert (config.replay.enabled, config.replay.source == "failure") == (variant != "off", variant == "failure")
