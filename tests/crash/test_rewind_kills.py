"""`kill -9` of a rewind at a random moment, as often as it takes: the same bits, and the run's files as they were."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from buffers.verification import verify
from buffers.view import StoreView
from loops.replay import replay
from tests.crash.plain import NumpyLearner
from tests.unit.loops.test_rewind import contents, make_run, shape, task_of

STEPS, ROUNDS = 60, 20
ROOT = Path(__file__).parents[2]


def start(*words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.crash.rewinding", *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_killed_rewind_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    run = make_run(tmp_path, mode="async", steps=STEPS)
    before, task = contents(run), task_of(run, 10)
    for descendants in ("keep", "drop"):
        began = time.monotonic()
        whole = start(str(run), str(tmp_path / f"whole-{descendants}"), task, descendants)
        expected = whole.communicate(timeout=600)[0].strip()
        assert whole.returncode == 0
        took_s = time.monotonic() - began
        rng, kills = random.Random(7), 0
        for number in range(ROUNDS):
            to = tmp_path / f"{descendants}-{number}"
            found = ""
            while not found:
                process = start(str(run), str(to), task, descendants)
                try:
                    # Between the imports and past the end: what is not killed has ended well.
                    found = process.communicate(timeout=rng.uniform(0.3, 1.05) * took_s)[0].strip()
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.communicate()
                    kills += 1
                else:
                    assert process.returncode == 0
            assert found == expected
            assert shape(to) == shape(tmp_path / f"whole-{descendants}")
            assert verify(to).defects == []
            assert all(one.equal for one in replay(StoreView.open(to / "store"), folder=to, learner=NumpyLearner()))
        assert kills >= ROUNDS // 2, "hardly anything was killed"
        print(f"{descendants}: {kills} kills in {ROUNDS} rounds, {took_s:.1f} s undisturbed")
    after = contents(run)
    assert {path: after.get(path) for path in before} == before
    leases = (
        after.keys() - before.keys()
    )  # of readers that were killed: they pin nothing, and the next trim removes them
    assert all(Path(path).parent.name == "readers" for path in leases)
