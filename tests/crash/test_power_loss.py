"""After every legal power loss the log holds exactly what it promised, and goes on."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from buffers.log import create_store
from buffers.log.files import write_durably
from contracts.errors import StoreStoppedError
from tests.crash.commit import LOGS, WAYS, try_all
from tests.crash.disk import BROKEN, Fault, unsynced, watched
from tests.crash.losses import Recorder
from tests.crash.power import Story, check, open_log, record
from tests.unit.buffers.log.logs import read_records

pytestmark = pytest.mark.timeout(300)  # thousands of small writes: a busy disk takes its time
SHARE = {"data": 80, "control": 80, "store": 15}  # of the outcomes in `make test`; the command tries all


@pytest.mark.parametrize("times", [1, pytest.param(10, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", SHARE)
def test_what_was_promised_survives(tmp_path: Path, name: str, times: int) -> None:
    recorder, look = record(name, tmp_path / "written" / name, tmp_path / "lost" / name)
    assert recorder.num_operations > 60
    with unsynced():
        for outcome in random.Random(0).sample(recorder.list_outcomes(), SHARE[name] * times):
            look(outcome)


@pytest.mark.parametrize("most", [25, pytest.param(2000, marks=[pytest.mark.slow, pytest.mark.timeout(900)])])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("log", LOGS)
def test_a_commit_that_was_lost_in_part_is_a_tear_and_no_rot(tmp_path: Path, log: str, way: str, most: int) -> None:
    """Every set of its pages, every sector, every byte it may end at: `strict` opens, with nothing that was promised
    gone and no append by half."""
    outcomes, tried = try_all(tmp_path, log=log, way=way, most=most)
    assert outcomes >= tried == min(most, outcomes) > 15


def test_a_store_that_promised_something_has_not_vanished(tmp_path: Path) -> None:
    """The folder's own name, and those above it, are as durable as what is in it."""
    recorder = Recorder(tmp_path)
    with watched(tmp_path, after=recorder):
        (tmp_path / "runs" / "run").mkdir(parents=True)  # by somebody who does not sync
        create_store(tmp_path / "runs" / "run" / "store")
        recorder.promise()
    kept = [outcome for outcome in recorder.list_outcomes() if outcome.promises]
    assert kept
    assert all("runs/run/store/store.json" in outcome.files for outcome in kept)


def test_a_small_file_is_the_old_one_or_the_new_one(tmp_path: Path) -> None:
    recorder, texts = Recorder(tmp_path), [b"old", b"newer", b"newest"]
    with watched(tmp_path, after=recorder):
        for text in texts:
            write_durably(tmp_path / "epoch", text)
            recorder.promise()
    seen = set()
    for outcome in recorder.list_outcomes(every_byte=True):
        content = outcome.files.get("epoch")
        assert content is not None or not outcome.promises
        if content is not None:
            seen.add(content[0])
            assert content[0] in texts[max(0, outcome.promises - 1) :], outcome.why
    assert seen == set(texts)


def test_what_recovery_kept_survives_the_next_power_loss(tmp_path: Path) -> None:
    """It was written but never synced, and shown by the recovery: so it may be named, and must stay."""
    folder, recorder = tmp_path / "data", Recorder(tmp_path)
    with watched(tmp_path, after=recorder):
        writer = open_log(folder, epoch=1, create=True)
        with watched(tmp_path, before=Fault(BROKEN, ("sync",))), pytest.raises(StoreStoppedError):
            writer.append([(2, b"kept by luck")])
        writer.close()
        again = open_log(folder, epoch=2)
        assert again.recovery.num_frames == 1
        recorder.promise()
        again.close()
    every = read_records(folder)
    story = Story(recorder, [[every[0][0]]], every, {every[0][0]})
    outcomes = [outcome for outcome in recorder.list_outcomes() if outcome.promises]
    assert outcomes
    with unsynced():
        for outcome in outcomes:
            check(outcome, tmp_path / "lost" / "data", story)
