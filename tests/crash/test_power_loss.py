"""After every legal power loss the log holds exactly what it promised, and goes on."""

from __future__ import annotations

import random
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

import pytest

from buffers.log import LogReader, LogWriter, create_store, verify_chain
from contracts.errors import StoreIdentityError
from contracts.records import Served
from tests.crash.disk import unsynced, watched
from tests.crash.losses import Outcome, Recorder
from tests.unit.buffers.bench import GROUPS_PER_STEP, opened, small_config
from tests.unit.buffers.log.logs import STORE, read_records

SEGMENT_BYTES = 4096
SHARE = 80  # of the outcomes in `make test`
STORE_SHARE = 15


@dataclass
class Story:
    """What happened to a log: every operation, the LSNs of each promise, all records, and where appends begin."""

    recorder: Recorder
    promised: list[list[int]]
    every: list[tuple[int, int, bytes]]
    begins: set[int]


def open_log(folder: Path, *, epoch: int, create: bool = False) -> LogWriter:
    return LogWriter.open(
        folder,
        store_uuid=STORE,
        epoch=epoch,
        create=create,
        chained=folder.name == "control",
        segment_bytes=SEGMENT_BYTES,
        strict=True,  # a tear is no rot
    )


def record_story(folder: Path) -> Story:
    """Two lives of a log: single and atomic appends, both ack levels, commits of several, rotation."""
    chance, recorder, promised, begins = random.Random(3), Recorder(folder.parent), list[list[int]](), set[int]()

    def hear(future: Future[list[int]]) -> None:
        promised.append(future.result())
        recorder.promise()

    with watched(folder.parent, after=recorder):
        for epoch in (1, 2):
            writer, futures = open_log(folder, epoch=epoch, create=epoch == 1), []
            for number in range(9):
                batch = [(2, chance.randbytes(chance.randrange(700))) for _ in range(1 + number % 3)]
                futures.append(writer.submit(batch, durable=number % 4 != 3))
                if number % 4 != 3:
                    futures[-1].add_done_callback(hear)
                if number % 3 == 2:  # else the next one may share its commit
                    futures[-1].result()
            begins.update(future.result()[0] for future in futures)
            writer.close()
    return Story(recorder, promised, read_records(folder), begins)


def check(outcome: Outcome, folder: Path, story: Story) -> None:
    """Recover, and go on."""
    outcome.restore(folder.parent)
    every = story.every
    kept = {lsn for lsns in story.promised[: outcome.promises] for lsn in lsns}
    if not list(folder.glob("*.seg")):
        assert not kept, outcome.why
        with pytest.raises(StoreIdentityError):
            open_log(folder, epoch=9)
        return
    writer = open_log(folder, epoch=9)
    found, recovery = read_records(folder), writer.recovery
    assert found == every[: len(found)], outcome.why
    assert kept <= {lsn for lsn, _, _ in found}, outcome.why
    assert len(found) == len(every) or every[len(found)][0] in story.begins, f"half an append: {outcome.why}"
    assert recovery.rot == ()
    assert recovery.uncertain_from in (None, recovery.durable_lsn)
    (lsn,) = writer.append([(2, b"goes on")])
    assert lsn > max(kept, default=-1), outcome.why
    writer.close()
    again = open_log(folder, epoch=10)
    again.close()
    assert (again.recovery.rot, again.recovery.torn_bytes, again.recovery.uncertain_from) == ((), 0, None)
    assert read_records(folder) == [*found, (lsn, 2, b"goes on")]
    if folder.name == "control":
        verify_chain(LogReader(folder))


@pytest.mark.parametrize("name", ["data", "control"])
def test_what_was_promised_survives(tmp_path: Path, name: str) -> None:
    story = record_story(tmp_path / "written" / name)
    outcomes = story.recorder.list_outcomes()
    assert story.recorder.num_operations > 60
    assert len(story.promised) == 14
    with unsynced():
        for outcome in random.Random(0).sample(outcomes, SHARE):
            check(outcome, tmp_path / "lost" / name, story)


def record_store(folder: Path) -> tuple[Recorder, list[tuple[str, int]]]:
    """Two owners of one store, one after the other: leases, episodes, batches, versions. (operations, promises)."""
    recorder, promised = Recorder(folder.parent, ignore=f"{folder.name}/index"), list[tuple[str, int]]()

    def promise(log: str, lsn: int) -> None:
        promised.append((log, lsn))
        recorder.promise()

    with watched(folder.parent, after=recorder):
        for life in range(2):
            with opened(folder) as bench:
                bench.serve(0) if not life else bench.owner.decide(Served(version=1, gap=0.0), bench.session)
                leases = bench.lease(GROUPS_PER_STEP)
                for lease in leases:
                    promise("data", lease.lsn)
                for ack in bench.play(leases, version=life):
                    promise("data", ack.lsn)
                lsn, _ = bench.cut(life + 1, parent_version=life)
                promise("control", lsn)
                promise("control", bench.decide_version(life + 1, step=life + 1, batch_lsn=lsn))
    return recorder, promised


def check_store(outcome: Outcome, folder: Path, promised: list[tuple[str, int]]) -> None:
    outcome.restore(folder.parent)
    for life in range(2):
        with opened(folder, config=small_config(strict=True)) as bench:
            kept = {log: {frame.lsn for frame in LogReader(folder / log).scan()} for log in ("data", "control")}
            lost = [(log, lsn) for log, lsn in promised[: outcome.promises] if lsn not in kept[log]]
            assert not lost, outcome.why
            ledger = bench.owner.ledger()
            assert ledger.balanced
            assert ledger.episodes_trained <= ledger.episodes
            status = bench.owner.status()
            assert (status["doubled"], status["unresolved"]) == (0, 0), outcome.why
            if not life and status["head"] is None:
                bench.serve(0)
                assert bench.lease(1)


def test_a_store_keeps_its_promises(tmp_path: Path) -> None:
    recorder, promised = record_store(tmp_path / "written" / "store")
    assert len(promised) == 16
    with unsynced():
        for outcome in random.Random(0).sample(recorder.list_outcomes(), STORE_SHARE):
            check_store(outcome, tmp_path / "lost" / "store", promised)


@pytest.mark.slow
def test_a_store_keeps_its_promises_after_every_loss(tmp_path: Path) -> None:
    recorder, promised = record_store(tmp_path / "written" / "store")
    outcomes = recorder.list_outcomes()
    with unsynced():
        for outcome in outcomes:
            check_store(outcome, tmp_path / "lost" / "store", promised)
    print(f"{len(outcomes)} outcomes of {recorder.num_operations} operations")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["data", "control"])
def test_what_was_promised_survives_every_loss(tmp_path: Path, name: str) -> None:
    story = record_story(tmp_path / "written" / name)
    outcomes = story.recorder.list_outcomes(every_byte=True)
    with unsynced():
        for outcome in outcomes:
            check(outcome, tmp_path / "lost" / name, story)
    print(f"{len(outcomes)} outcomes of {story.recorder.num_operations} operations")


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
