"""The table of a sweep, by hand: means, paired differences, what is missing."""

from __future__ import annotations

import pytest

from console.comparison import Outcome, compare, render_markdown, render_text


def outcome(variant: str, seed: int, last: float | None, *, first: float = 0.25, metric: str = "accuracy") -> Outcome:
    scores = None if last is None else {"metric": metric, "items": 9, "first": first, "best": 1.0, "last": last}
    state = "crashed" if last is None else "finished"
    return Outcome(variant=variant, seed=seed, run=f"{variant}-seed-{seed}", state=state, scores=scores)


def test_means_gains_and_differences_by_hand() -> None:
    """b is 0.1 above a on each seed, although the seeds differ by more: pairing sees it, two intervals would not."""
    report = compare(
        [
            *(outcome("a", seed, last) for seed, last in enumerate([0.3, 0.5, 0.7])),
            *(outcome("b", seed, last) for seed, last in enumerate([0.4, 0.6, 0.8])),
        ]
    )
    a, b = report["variants"]
    assert a["last"]["mean"] == pytest.approx(0.5)
    assert b["gain"]["mean"] == pytest.approx(0.35)
    assert a["last"]["low"] < b["last"]["mean"] < a["last"]["high"]
    (difference,) = report["differences"]
    assert difference["seeds"] == [0, 1, 2]
    assert [difference["last"][key] for key in ("mean", "low", "high")] == pytest.approx([0.1] * 3)
    text = render_text(report)
    assert "0.500 [0.300, 0.700]" in text
    assert "b against a     3      +0.100 [+0.100, +0.100]" in text


def test_runs_that_did_not_finish_are_shown_and_not_counted() -> None:
    report = compare([outcome("a", 0, 0.5), outcome("a", 1, None), outcome("b", 0, None), outcome("b", 1, None)])
    a, b = report["variants"]
    assert (a["num_seeds"], a["last"]["mean"]) == (1, 0.5)
    assert (b["num_seeds"], b["last"]) == (0, None)
    assert report["differences"] == []
    lines = render_text(report).splitlines()
    assert lines[1].split() == ["a", "0.500", "crashed", "0.500", "(one", "seed)", "+0.250", "(one", "seed)"]
    assert lines[2].split() == ["b", "crashed", "crashed"]


def test_scores_of_two_kinds_are_not_subtracted() -> None:
    report = compare([outcome("a", 0, 0.5), outcome("b", 0, 450.0, metric="greedy_return")])
    assert report["differences"] == []
    assert "accuracy, greedy_return" in render_text(report)


def test_one_variant_and_markdown() -> None:
    page = render_markdown(compare([outcome("", 3, 0.5), outcome("", 4, 0.5)]))
    lines = page.splitlines()
    assert lines[:2] == ["| variant | seed 3 | seed 4 | accuracy | gain |", "| --- | --- | --- | --- | --- |"]
    assert lines[2] == "| all | 0.500 | 0.500 | 0.500 [0.500, 0.500] | +0.250 [+0.250, +0.250] |"
    assert "say nothing of other held-out items" in page
