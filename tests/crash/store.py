"""Kill a store at random moments and count: `python -m tests.crash.store --rounds 1000`.

Each round is one life (tests/crash/store_life.py) of a process that owns a store and uses it from five threads, ended
by SIGKILL at a random moment: while it opens, recovers, appends, rotates, decides, or takes a snapshot. The oracle
lives outside: it hears each acknowledgement over a pipe, and opens the store only when the process is dead. It counts
frames itself and asks the store's own fold last. Not covered: power loss (tests/crash/losses.py), several nodes, Ray.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import select
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TypeVar

from buffers import snapshots
from buffers.codec import peek
from buffers.log.reader import LogReader, verify_chain
from buffers.view import StoreView
from contracts.records import (
    Batch,
    Episode,
    Feedback,
    Hold,
    Priority,
    Record,
    Review,
    Skip,
    Task,
    Version,
)
from tests.crash.store_life import live

T = TypeVar("T")

LIVES = 20  # kills of one store before the next one is made: what a check reads stays small
LONGEST_S = 0.3  # from its opening to its kill, at most
WHILE_OPENING = 0.2  # share of the kills that are timed from the start of the process instead
OPENING_S = 0.1
STUCK_S = 60.0  # a store that has not opened by then never will


@dataclass
class Oracle:
    """What was promised in all lives of one store, by LSN."""

    tasks: set[int] = field(default_factory=set)
    episodes: dict[int, str] = field(default_factory=dict)  # data LSN → id
    late: set[int] = field(default_factory=set)
    feedback: dict[int, int] = field(default_factory=dict)  # data LSN → LSN of its episode
    verdicts: set[tuple[str, str]] = field(default_factory=set)  # hold or review, its reason: each has one of its own
    priorities: dict[int, int] = field(default_factory=dict)  # data LSN → lease
    decisions: dict[int, tuple[str, int]] = field(default_factory=dict)  # control LSN → what, and which
    snapshots: dict[str, frozenset[int]] = field(default_factory=dict)  # name → episodes promised before it was begun
    epochs: list[int] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    _begun: dict[str, frozenset[int]] = field(default_factory=dict)

    @property
    def num_promises(self) -> int:
        said = (self.tasks, self.episodes, self.feedback, self.verdicts, self.priorities, self.decisions)
        return sum(map(len, said))

    def hear(self, line: str) -> None:
        what, *words = line.split(" ", 1 if line.startswith("fault") else -1)
        match what:
            case "open":
                self.epochs.append(int(words[0]))
            case "task":
                self.tasks.add(int(words[0]))
            case "episode" | "late":
                self._expect(self.episodes, int(words[0]), words[1])
                if what == "late":
                    self.late.add(int(words[0]))
            case "feedback":
                self._expect(self.feedback, int(words[0]), int(words[1]))
            case "hold" | "review":
                self.verdicts.add((what, words[0]))
            case "priority":
                self._expect(self.priorities, int(words[0]), int(words[1]))
            case "batch" | "version" | "skip":
                self._expect(self.decisions, int(words[0]), (what, int(words[1])))
            case "taking":
                self._begun[words[0]] = frozenset(self.episodes)
            case "snapshot":
                self.snapshots[words[0]] = self._begun[words[0]]
            case _:
                self.faults.append(line)

    def _expect(self, promised: dict[int, T], lsn: int, value: T) -> None:
        if promised.setdefault(lsn, value) != value:
            self.faults.append(f"LSN {lsn} was promised for {promised[lsn]} and again for {value}")


@dataclass
class Found:
    """What frames of the two logs there are, read one by one, without the store's fold and index."""

    data: dict[int, Record]
    control: dict[int, Record]
    faults: list[str]

    @property
    def episodes(self) -> dict[int, Episode]:
        return {lsn: record for lsn, record in self.data.items() if isinstance(record, Episode)}

    def of_kind(self, kind: type[T]) -> dict[int, T]:
        return {lsn: record for lsn, record in self.control.items() if isinstance(record, kind)}


def read_store(folder: Path) -> Found:
    """Every record, and what the logs themselves have to say against it."""
    faults = []
    logs: list[dict[int, Record]] = []
    for name in ("data", "control"):
        reader = LogReader(folder / name)
        logs.append({frame.lsn: peek(frame.kind, frame.payload) for frame in reader.scan()})
        faults += [f"{name}: rot from LSN {start} to {end}" for start, end in reader.rot()]
        if reader.chained:
            verify_chain(reader)
    return Found(logs[0], logs[1], faults)


def find_faults(run_folder: Path, oracle: Oracle) -> list[str]:
    """What is wrong with a dead store, in words: empty where every promise was kept."""
    if not (run_folder / "store" / "begun").exists():
        return ["a store that opened is gone"] if oracle.epochs else []
    found = read_store(run_folder / "store")
    faults = [*oracle.faults, *found.faults]
    if oracle.epochs != sorted(set(oracle.epochs)):
        faults.append(f"epochs do not rise: {oracle.epochs}")
    faults += _check_promises(oracle, found)
    faults += _check_batches(oracle, found)
    faults += _check_ledger(run_folder / "store", oracle, found)
    for name, promised in oracle.snapshots.items():
        snapshots.verify(run_folder / "snapshots" / name)
        kept = read_store(run_folder / "snapshots" / name / "store")
        faults += [*kept.faults, *(f"snapshot {name} lacks episode {lsn}" for lsn in promised - kept.data.keys())]
    return faults


def _check_promises(oracle: Oracle, found: Found) -> Iterator[str]:
    """Nothing lost, nothing doubled."""
    for lsn in oracle.tasks:
        if not isinstance(found.data.get(lsn), Task):
            yield f"lost: task {lsn}"
    for lsn, episode_id in oracle.episodes.items():
        record = found.data.get(lsn)
        if not isinstance(record, Episode) or record.episode_id != episode_id:
            yield f"lost: episode {lsn}"
    for lsn, episode_lsn in oracle.feedback.items():
        record = found.data.get(lsn)
        if not isinstance(record, Feedback) or record.episode_lsn != episode_lsn:
            yield f"lost: feedback {lsn}"
    for lsn, lease in oracle.priorities.items():
        record = found.data.get(lsn)
        if not isinstance(record, Priority) or record.leases != (lease,):
            yield f"lost: priority {lsn}"
    verdicts = Counter(
        (record.KIND.name.lower(), record.reason) for record in found.data.values() if isinstance(record, Hold | Review)
    )
    yield from (f"lost: {what} {reason}" for what, reason in oracle.verdicts if not verdicts[what, reason])
    yield from (f"doubled: {what} {reason}" for (what, reason), count in verdicts.items() if count > 1)
    for lsn, (what, number) in oracle.decisions.items():
        if _name_decision(found.control.get(lsn)) != (what, number):
            yield f"lost: {what} {number} at {lsn}"
    ids = Counter(episode.episode_id for episode in found.episodes.values())
    yield from (f"doubled: episode {episode_id}" for episode_id, count in ids.items() if count > 1)
    seqs = Counter((one.producer, one.producer_epoch, one.seq) for one in found.episodes.values())
    yield from (f"doubled: sequence number {seq}" for seq, count in seqs.items() if count > 1)


def _name_decision(record: Record | None) -> tuple[str, int]:
    match record:
        case Batch():
            return "batch", record.step
        case Version():
            return "version", record.version
        case Skip():
            return "skip", record.batch_lsn
    return "nothing", -1


def _check_batches(oracle: Oracle, found: Found) -> Iterator[str]:
    """One batch a step, of durable rows, none of them twice or late; version numbers that rise."""
    batches = found.of_kind(Batch)
    steps = Counter((batch.branch, batch.step) for batch in batches.values())
    yield from (f"doubled: batch of step {step}" for step, count in steps.items() if count > 1)
    rows = Counter(row.episode_lsn for batch in batches.values() for row in batch.rows if not row.replayed)
    yield from (f"trained twice: episode {lsn}" for lsn, count in rows.items() if count > 1)
    yield from (f"in a batch, but late: episode {lsn}" for lsn in rows.keys() & oracle.late)
    for lsn, batch in batches.items():
        named = {row.episode_lsn for row in batch.rows} | {row.reward_lsn for row in batch.rows}
        if not named <= found.data.keys() or max(named) >= batch.data_lsn:
            yield f"batch {lsn} names what was not durable"
    numbers = [version.version for version in found.of_kind(Version).values()]
    if numbers != sorted(set(numbers)):
        yield "version numbers do not rise"


def _check_ledger(folder: Path, oracle: Oracle, found: Found) -> Iterator[str]:
    """The fold's sums are those of the frames below the durable mark, which everything promised is.

    A process that dies between a write and the mark leaves frames above it: nobody was told of them, and no reader
    counts them before the next owner has looked at them.
    """
    with StoreView.open(folder) as view:
        ledger, fold = view.ledger(), view.fold
        if not ledger.balanced:
            yield f"the ledger does not balance: {ledger}"
        promised = [*oracle.tasks, *oracle.episodes, *oracle.feedback, *oracle.priorities]
        yield from (f"promised above the durable mark: {lsn}" for lsn in promised if view.data_lsn <= lsn in found.data)
        decisions = [lsn for lsn in oracle.decisions if view.control_lsn <= lsn in found.control]
        yield from (f"decided above the durable mark: {lsn}" for lsn in decisions)
        durable = [record for lsn, record in found.data.items() if lsn < view.data_lsn]
        counted = tuple(sum(isinstance(record, kind) for record in durable) for kind in (Task, Episode))
        if counted != (ledger.handed, ledger.episodes):
            yield f"the ledger says {ledger}, the frames {counted}"
        decided = {lsn: record for lsn, record in found.control.items() if lsn < view.control_lsn}
        settled = {record.batch_lsn for record in decided.values() if isinstance(record, Version)}
        settled -= {record.batch_lsn for record in decided.values() if isinstance(record, Skip)}
        batches = {lsn: record for lsn, record in decided.items() if isinstance(record, Batch)}
        trained = sum(len(batch.rows) for lsn, batch in batches.items() if lsn in settled)
        if trained != ledger.episodes_trained:
            yield f"the ledger says {ledger.episodes_trained} episodes were trained on, the frames {trained}"
        if (fold.num_doubled, fold.num_unresolved) != (0, 0):
            yield f"{fold.num_doubled} doubled and {fold.num_unresolved} unresolved in the fold"


# ---------------------------------------------------------------------------------------------- rounds


@dataclass
class Summary:
    rounds: int = 0
    stores: int = 0
    killed_while_opening: int = 0
    tasks: int = 0
    episodes: int = 0
    late: int = 0
    feedback: int = 0
    verdicts: int = 0
    priorities: int = 0
    decisions: int = 0
    snapshots: int = 0
    failed_rounds: int = 0
    faults: list[str] = field(default_factory=list)
    wall_s: float = 0.0

    def add(self, oracle: Oracle) -> None:
        """Count in a store that is done with."""
        self.stores += 1
        self.tasks += len(oracle.tasks)
        self.episodes += len(oracle.episodes)
        self.late += len(oracle.late)
        self.feedback += len(oracle.feedback)
        self.verdicts += len(oracle.verdicts)
        self.priorities += len(oracle.priorities)
        self.decisions += len(oracle.decisions)
        self.snapshots += len(oracle.snapshots)


def kill_once(run_folder: Path, oracle: Oracle, *, seed: int) -> None:
    """One life, and its end; what it promised is told to the oracle."""
    chance = random.Random(seed)
    ears, mouth = os.pipe()
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        os.close(ears)
        live(run_folder, seed=seed, pipe=mouth)
    os.close(mouth)
    heard = bytearray()
    try:
        while_opening = chance.random() < WHILE_OPENING
        _listen(ears, heard, for_s=chance.uniform(0.0, OPENING_S) if while_opening else STUCK_S, until_open=True)
        if heard:
            _listen(ears, heard, for_s=chance.uniform(0.0, LONGEST_S))
        elif not while_opening:
            oracle.faults.append(f"it did not open within {STUCK_S:.0f} s")
    finally:
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
    while chunk := os.read(ears, 1 << 16):  # what was said before it died
        heard += chunk
    os.close(ears)
    for line in heard.decode().splitlines():
        oracle.hear(line)
    if os.WTERMSIG(status) != signal.SIGKILL and not oracle.faults:
        oracle.faults.append(f"it ended by itself: status {status}")


def _listen(ears: int, heard: bytearray, *, for_s: float, until_open: bool = False) -> None:
    """Hear what is said in `for_s` seconds, or until the first words."""
    end_s = time.monotonic() + for_s
    while (left_s := end_s - time.monotonic()) > 0 and select.select([ears], [], [], left_s)[0]:
        chunk = os.read(ears, 1 << 16)
        heard += chunk
        if not chunk or until_open:
            return


def make_run_folder(scratch: Path, *, number: int) -> Path:
    """As much of a run as a snapshot asks for."""
    run_folder = scratch / f"run-{number}"
    run_folder.mkdir()
    for name in ("config.yaml", "manifest.json"):
        (run_folder / name).write_text("{}\n")
    return run_folder


def run_rounds(scratch: Path, *, rounds: int, seed: int, show: bool = False) -> Summary:
    """Kill `rounds` times; a store whose check fails is kept below `scratch`, the others are removed."""
    summary, began_s = Summary(), time.monotonic()
    run_folder, oracle = make_run_folder(scratch, number=0), Oracle()
    for number in range(rounds):
        opened = len(oracle.epochs)
        kill_once(run_folder, oracle, seed=seed + number)
        faults = find_faults(run_folder, oracle)
        summary.rounds += 1
        summary.killed_while_opening += len(oracle.epochs) == opened
        summary.failed_rounds += bool(faults)
        summary.faults += [f"seed {seed + number}, {run_folder.name}: {fault}" for fault in faults]
        if show and (number + 1) % LIVES == 0:
            print(f"{number + 1:6} rounds, {summary.failed_rounds} failed", file=sys.stderr, flush=True)
        if faults or (number + 1) % LIVES == 0 or number + 1 == rounds:
            summary.add(oracle)
            if not faults:
                shutil.rmtree(run_folder)
            run_folder, oracle = make_run_folder(scratch, number=number + 1), Oracle()
    summary.wall_s = round(time.monotonic() - began_s, 1)
    return summary


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0, help="of the first round; the next ones count up")
    parser.add_argument("--folder", type=Path, help="where the stores lie (default: a temporary one)")
    options = parser.parse_args()
    if options.folder is not None and not options.folder.is_dir():
        parser.error(f"--folder {options.folder}: there is no such folder")
    scratch = Path(tempfile.mkdtemp(prefix="ratchet-kills-", dir=options.folder))
    summary = run_rounds(scratch, rounds=options.rounds, seed=options.seed, show=True)
    print(json.dumps(asdict(summary), indent=1))
    if not summary.failed_rounds:
        shutil.rmtree(scratch)
    return int(summary.failed_rounds > 0)


if __name__ == "__main__":
    sys.exit(main())
