"""Kill every action on a store at each of its steps, and look: `python -m tests.crash.steps`.

An action runs in a process of its own, which SIGKILL ends before its nth change of a file (tests/crash/failpoints.py),
for every n. Then everything that was there before is still there and whole, and the action can be done again. Prints
how many steps there were. Not covered: what LMDB does to its own file, a kill inside the removal of a folder, power
loss (tests/crash/power.py).
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from buffers import branching, snapshots
from buffers.archive import archive
from buffers.archive import restore as restore_archive
from buffers.erasure import Choice, erase
from buffers.log.segments import list_starts
from buffers.repair import repair
from buffers.verification import verify
from buffers.view import StoreView
from contracts.records import Ledger
from tests.crash.disk import unsynced
from tests.crash.failpoints import kill_at_each_step
from tests.unit.buffers.bench import opened
from tests.unit.buffers.test_retention import bounded, fill
from tests.unit.buffers.test_snapshots import make_run, train
from tests.unit.buffers.test_tending import break_first_episode, copy, episodes

Act = Callable[[Path], object]


@dataclass(frozen=True)
class Action:
    """`act` on the run in a folder; `look` at that folder afterwards, where `done` says whether it came to its end."""

    act: Act
    look: Callable[[Path, bool], None]
    prepare: Act = lambda _: None
    is_long: bool = False  # on a run of many segments


def ledger(run: Path) -> Ledger:
    return StoreView.open(run / "store").ledger()


def check_whole(run: Path) -> None:
    assert verify(run).defects == []
    assert ledger(run).balanced
    with opened(run / "store") as bench:
        bench.owner.attach("another")


def look_at_trim(place: Path, done: bool) -> None:
    run = place / "run"
    before = ledger(run)
    assert before.balanced
    with opened(run / "store", config=bounded()) as bench:
        assert bench.owner.ledger() == before
        bench.owner.trim()
        assert not done or list_starts(run / "store" / "data")[0] > 0
    assert verify(run).defects == []


def act_trim(run: Path) -> None:
    with opened(run / "store", config=bounded()) as bench:
        bench.owner.trim()


def look_at_archive(place: Path, done: bool) -> None:
    run, back = place / "run", place / "back"
    check_whole(run)
    if done:
        restore_archive(uri_of(run), back)
        shutil.rmtree(back)
    archive(run, uri_of(run))
    assert [path.name for path in snapshots.find_folders(run)] == ["second"]
    restore_archive(uri_of(run), back)
    assert ledger(back) == ledger(run)


def look_at_restored(place: Path, done: bool) -> None:
    """The name stands for all of it, or is free."""
    run, other = place / "run", place / "other"
    snapshots.verify(run / "snapshots" / "second")
    assert other.exists() or not done
    if not other.exists():
        branching.restore(run / "snapshots" / "second", other, share=True)
    assert ledger(other) == ledger(run / "snapshots" / "second")
    check_whole(other)
    check_whole(run)


def look_at_fetched(place: Path, done: bool) -> None:
    run, other = place / "run", place / "other"
    assert other.exists() or not done
    if not other.exists():
        restore_archive(uri_of(run), other)
    assert ledger(other) == ledger(run)
    check_whole(other)


def look_at_deleted(place: Path, done: bool) -> None:
    run = place / "run"
    left = [path.name for path in snapshots.find_folders(run)]
    assert left in ([], ["second"])
    assert not (done and left)
    if left:
        snapshots.verify(run / "snapshots" / "second")
        snapshots.delete(run, "second")
    check_whole(run)


def look_at_erased(place: Path, _: bool) -> None:
    run = place / "run"
    lsn = min(episodes(run))
    before = ledger(run)
    erase(run, Choice(lsns=frozenset((lsn,))), reason="asked for")
    assert ledger(run) == before
    assert episodes(run)[lsn].steps == episodes(run / "snapshots" / "second")[lsn].steps == ()
    check_whole(run)


def look_at_repaired(place: Path, done: bool) -> None:
    run = place / "run"
    assert not done or verify(run).defects == []
    repair(run)
    check_whole(run)


def uri_of(run: Path) -> str:
    return str(run.parent / "far")


def first_lsn(run: Path) -> frozenset[int]:
    return frozenset((min(episodes(run)),))


def fork_second(run: Path, *, share: bool) -> Any:
    return branching.restore(run / "snapshots" / "second", run.parent / "other", share=share)


ACTIONS = {
    "trim": Action(act_trim, look_at_trim, is_long=True),
    "archive": Action(lambda run: archive(run, uri_of(run)), look_at_archive),
    "restore from an archive": Action(
        lambda run: restore_archive(uri_of(run), run.parent / "other"),
        look_at_fetched,
        prepare=lambda run: archive(run, uri_of(run)),
    ),
    "restore": Action(lambda run: fork_second(run, share=False), look_at_restored),
    "branch": Action(lambda run: fork_second(run, share=True), look_at_restored),
    "delete a snapshot": Action(lambda run: snapshots.delete(run, "second"), look_at_deleted),
    "erase": Action(
        lambda run: erase(run, Choice(lsns=first_lsn(run)), reason="asked for"),
        look_at_erased,
    ),
    "repair": Action(repair, look_at_repaired, prepare=break_first_episode),
}


def make_runs(folder: Path) -> dict[bool, Path]:
    """The two runs that actions begin with, by `is_long`; to be copied."""
    short, long = make_run(folder / "short"), make_run(folder / "long")
    with opened(short / "store") as bench:
        train(bench, short, steps=2)
        snapshots.create(short, "second")
    with opened(long / "store", config=bounded()) as bench:
        fill(bench, long)
    return {False: short, True: long}


def try_steps(name: str, runs: dict[bool, Path], scratch: Path, *, stride: int = 1) -> int:
    """How many steps were tried. AssertionError where something was lost."""
    action = ACTIONS[name]

    def prepare(place: Path) -> Callable[[], object]:
        run = copy(runs[action.is_long], place / "run")
        with unsynced():
            action.prepare(run)
        return lambda: action.act(run)

    def look(place: Path, done: bool) -> None:
        with unsynced():
            action.look(place, done)
        shutil.rmtree(place)

    return kill_at_each_step(prepare, look, scratch, stride=stride)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stride", type=int, default=1, help="try every nth step only")
    parser.add_argument("--action", choices=ACTIONS, action="append", help="this one alone. Repeatable")
    options = parser.parse_args()
    began_s, counted = time.monotonic(), dict[str, int]()
    with tempfile.TemporaryDirectory(prefix="ratchet-steps-") as scratch:
        runs = make_runs(Path(scratch))
        for name in options.action or ACTIONS:
            counted[name] = try_steps(name, runs, Path(scratch) / "tried" / name, stride=options.stride)
    print(json.dumps({"steps": counted, "faults": 0, "wall_s": round(time.monotonic() - began_s, 1)}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
