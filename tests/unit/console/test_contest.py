"""Several learners on one log: intervals, the table, and the page."""

from __future__ import annotations

import numpy as np
import pytest

from actors.contest import estimate
from console.contest import render_page, render_text


def test_an_interval_over_items_or_over_seeds() -> None:
    rng = np.random.default_rng(0)
    items = [rng.binomial(1, chance, 400).astype(float) for chance in (0.5, 0.6, 0.7)]
    one, all_ = estimate(items[:1]), estimate(items)
    assert one.mean == items[0].mean()
    assert one.high - one.low == pytest.approx(2 * 1.96 * 0.5 / 20, rel=0.2)
    assert all_.mean == pytest.approx(np.mean(items))
    assert all_.low < min(one.mean for one in map(estimate, ([items[1]],))) < all_.high
    assert all_.high - all_.low > one.high - one.low


INTERVAL = {"mean": 0.5, "low": 0.4, "high": 0.6}
REPORT = {
    "run": "quickstart-1",
    "out": "learners",
    "metric": "sampled_accuracy",
    "seeds": [0],
    "recorded": [{"step": 0.0, "score": 0.3}, {"step": 4.0, "score": 0.5}],
    "variants": [
        {
            "name": name,
            "changed": {},
            "curve": [{"step": step, **INTERVAL} for step in (2, 4)],
            "last": INTERVAL,
            "against_first": {"mean": 0.0, "low": -0.1, "high": 0.1},
            "end": {"importance_ess": 0.9, "kl": 0.01},
        }
        for name in ("loss-grpo", "loss-<b>")
    ],
}


def test_the_table() -> None:
    head, first, second, *_ = render_text(REPORT)
    assert head.split() == ["learner", "sampled_accuracy", "against", "importance_ess", "kl"]
    assert first.split() == ["loss-grpo", "0.500", "[0.400,", "0.600]", "0.9000", "0.0100"]
    assert "+0.000 [-0.100, +0.100]" in second


def test_the_page() -> None:
    page = render_page(REPORT)
    assert page.count("<svg") == 2
    assert "loss-&lt;b&gt;" in page
    assert "loss-<b>" not in page
    assert "the run itself" in page
