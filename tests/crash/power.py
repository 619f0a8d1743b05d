"""Lose the power after every operation in every legal way, and look: `python -m tests.crash.power`.

Two stories are recorded (tests/crash/losses.py): two lives of each log, and two owners of one store. Of every outcome
recovery must make exactly what was promised, and at most whole appends that nobody was promised; no LSN of a promise is
used again, a tear is no rot (`strict` is on), and the log goes on. Prints how many outcomes there were.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

from buffers.log import LogReader, LogWriter, verify_chain
from contracts.errors import StoreIdentityError
from contracts.records import Served
from tests.crash.disk import unsynced, watched
from tests.crash.losses import Outcome, Recorder
from tests.unit.buffers.bench import GROUPS_PER_STEP, opened, small_config
from tests.unit.buffers.log.logs import STORE, read_records

SEGMENT_BYTES = 4096


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
        try:
            open_log(folder, epoch=9)
        except StoreIdentityError:
            return
        raise AssertionError(f"a log without a segment was opened: {outcome.why}")
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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--most", type=int, default=0, help="outcomes of each story, drawn at random (default: all)")
    options = parser.parse_args()
    counted = {}
    with tempfile.TemporaryDirectory(prefix="ratchet-power-") as scratch, unsynced():
        for name in ("data", "control", "store"):
            began_s, lost = time.monotonic(), Path(scratch) / "lost" / name
            recorder, look = record(name, Path(scratch) / "written" / name, lost)
            outcomes = recorder.list_outcomes(every_byte=name != "store" and not options.most)
            tried = random.Random(0).sample(outcomes, options.most) if options.most else outcomes
            for outcome in tried:
                look(outcome)
            wall_s = round(time.monotonic() - began_s, 1)
            counted[name] = {
                "operations": recorder.num_operations,
                "outcomes": len(outcomes),
                "tried": len(tried),
                "wall_s": wall_s,
            }
    print(json.dumps(counted, indent=1))
    return 0


def record(name: str, written: Path, lost: Path) -> tuple[Recorder, Callable[[Outcome], None]]:
    """A story by name, and how to look at one of its outcomes; AssertionError where a promise was broken."""
    if name == "store":
        recorder, promised = record_store(written)
        return recorder, lambda outcome: check_store(outcome, lost, promised)
    story = record_story(written)
    return story.recorder, lambda outcome: check(outcome, lost, story)


if __name__ == "__main__":
    sys.exit(main())
