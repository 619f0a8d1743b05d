"""What the simulation of many shards makes of costs that are known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks import scale


def known(*, call_s: float, row_s: float) -> scale.Measured:
    cost = scale.Cost(call_s, row_s, np.ones(1))
    return scale.Measured(
        calls=dict.fromkeys(("offer", "read", "follow", "commit", "append"), cost),
        client_row_s=0.0,
        split_row_s=0.0,
        row_bytes=30.0,
        row_memory=300.0,
        row_read_s=1e-6,
        call_s=1e-3,
    )


def test_a_cost_is_found_again() -> None:
    samples = [(rows, 1e-3 + 2e-6 * rows) for rows in (100, 1000) for _ in range(9)]
    cost = scale.Cost.fit(samples)
    assert cost.call_s == pytest.approx(1e-3)
    assert cost.row_s == pytest.approx(2e-6)
    drawn = cost.draw(np.random.default_rng(0), calls=5, rows=500)
    assert drawn == pytest.approx(np.full(5, 2e-3))


def test_a_step_costs_what_its_calls_cost() -> None:
    measured = known(call_s=1e-3, row_s=0.0)
    found = scale.simulate(measured, nodes=100, rng=np.random.default_rng(0), steps=3)
    assert found["offers_s"] == pytest.approx(100 * 2e-3)
    assert found["news_s"] == pytest.approx(3 * 100 * 2e-3)
    assert found["commit_s"] == pytest.approx(2e-3)
    assert found["control_log_gib"] == pytest.approx(scale.EPISODES * 30 / 2**30, abs=0.1)
    assert found["append_p50_ms"] < 3
    assert found["coordination_overlapped_s"] < found["coordination_s"]


def test_what_breaks_first_is_the_largest_part_of_the_first_step_that_is_too_long() -> None:
    measured = known(call_s=1e-2, row_s=0.0)
    rows = [scale.simulate(measured, nodes=nodes, rng=np.random.default_rng(0), steps=3) for nodes in (10, 1000)]
    assert scale.limit(rows) == "news, at 1000 nodes"
    assert scale.limit(rows[:1]) == "nothing that takes time a step"


def test_a_figure_is_told_with_its_spread() -> None:
    rows = [scale.simulate(known(call_s=1e-2, row_s=0.0), nodes=nodes, rng=np.random.default_rng(0), steps=1)
            for nodes in scale.NODES]  # fmt: skip
    rounds = [
        {"measured": {"call_s": cost}, "simulated": rows, "breaks_first": scale.limit(rows)} for cost in (3, 1, 2)
    ]
    found = scale.summarise(rounds)
    assert found["measured"]["call_s"] == [2.0, 1, 3]
    assert found["breaks_first"] == {"news, at 1000 nodes": 3}
    assert [row["nodes"][0] for row in found["simulated"]] == list(scale.NODES)


@pytest.mark.slow
def test_costs_are_measured_by_real_steps(tmp_path: Path) -> None:
    measured = scale.measure(tmp_path, round_trip_s=1e-3)
    assert {"append", "lease", "offer", "read", "follow", "commit", scale.ASKED} <= measured.calls.keys()
    assert measured.calls["read"].row_s > 0
    assert 10 < measured.row_bytes < 100
