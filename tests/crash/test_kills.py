"""A few kill rounds of real runs, of both tenants: `python -m tests.crash.run` does fifty and more."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.crash.run import END_S, START_S, rounds_with

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]


@pytest.mark.parametrize(
    ("engine", "victims"),
    [
        ("transformers", ("driver", "store")),
        ("torch", ("engine-0",)),
        pytest.param("transformers", ("driver", "store", "update-0"), marks=pytest.mark.slow),
        pytest.param("torch", ("engine-0", "rollout-0"), marks=pytest.mark.slow),
    ],
)
def test_kill_rounds(tmp_path: Path, engine: str, victims: tuple[str, ...]) -> None:
    rounds = rounds_with(engine, rounds=len(victims), seed=0, scratch=tmp_path / "run", victims=victims)
    assert sorted(each.victim for each in rounds) == sorted(victims)
    for each in rounds:
        assert each.passed, each
        assert each.exit_code == (-9 if each.victim == "driver" else 1), each
        assert each.driver_ended_s < END_S
        assert 0 < each.resumed_s < START_S
    heard = [each.acknowledged for each in rounds]
    assert heard[0] > 0
    assert heard == sorted(set(heard)), "the run went on between the kills"
    steps = [each.killed_at_step for each in rounds]
    assert steps == sorted(set(steps))
