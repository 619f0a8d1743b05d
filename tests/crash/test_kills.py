"""Three kill rounds of a real run, of the driver, the store, the learner: `python -m tests.crash.run` does fifty."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.crash.run import END_S, START_S, rounds_with

VICTIMS = ("driver", "store", "update-0")

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]


def test_three_kill_rounds(tmp_path: Path) -> None:
    rounds = rounds_with("transformers", rounds=3, seed=0, scratch=tmp_path / "run", victims=VICTIMS)
    assert sorted(each.victim for each in rounds) == sorted(VICTIMS)
    for each in rounds:
        assert each.passed, each
        assert each.exit_code == (-9 if each.victim == "driver" else 1), each
        assert each.driver_ended_s < END_S
        assert 0 < each.resumed_s < START_S
    heard = [each.acknowledged for each in rounds]
    assert 0 < heard[0] < heard[1] < heard[2], "the run went on between the kills"
    steps = [each.killed_at_step for each in rounds]
    assert steps == sorted(set(steps))
