"""Lose parts of one commit that was never synced, in every way its size allows: `python -m tests.crash.commit`.

A log holds acknowledged records; one commit of several atomic appends is written, and the power goes before its sync.
The disk has kept any set of its pages (all sets are tried), has lost any of its sectors of 512 bytes, has two of them
in each other's place, or ends after any byte, in zeros or shorter. Each outcome is opened with `strict` on, which must
not take the tear for rot, and has to hold what was acknowledged, then whole appends in their order, and go on
(tests/crash/power.py looks). Prints how many outcomes there were. Not covered: what tests/crash/losses.py does not.
"""

from __future__ import annotations

import argparse
import errno
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from threading import Event

from buffers.log import LogWriter
from contracts.errors import StoreStoppedError
from tests.crash.disk import Operation, unsynced, watched
from tests.crash.losses import SECTOR_BYTES, Files, Outcome, Recorder
from tests.crash.power import Story, check
from tests.unit.buffers.log.logs import STORE, read_records

PAGE_BYTES = 4096
WAYS = ("pages", "sectors lost", "sectors swapped", "cut", "shortened")
LOGS = ("data", "control")
NUM_PAGES = {"cut": 1, "shortened": 1}  # of the commit, where every byte is a case of its own
MOST_PAGES = 8  # elsewhere: all sets of nine, since it does not begin where a page does
SEGMENT_BYTES = 64 << 10
WAIT_S = 60.0


@dataclass
class Commit:
    """A log whose last commit was written and not synced: `begin` and `end` are its place in the one segment."""

    story: Story
    files: Files
    segment: str
    begin: int
    end: int

    def outcome(self, why: str, change: Callable[[bytearray], None], *, without: str = "") -> Outcome:
        """What is left when that happened to the segment; `without` a file of this name."""
        files = {name: content for name, content in self.files.items() if Path(name).name != without}
        content = files[self.segment]
        assert content is not None
        data = bytearray(content[0])
        change(data)
        files[self.segment] = (bytes(data), len(data))
        return Outcome(files, len(self.story.promised), why)


class _Interrupted:
    """Holds the first write back until all is submitted, so that the rest is one commit; its sync fails."""

    def __init__(self) -> None:
        self.is_writing, self.all_submitted = Event(), Event()
        self._num_syncs = 0

    def __call__(self, operation: Operation) -> None:
        if operation.name == "write" and ".seg" in operation.path.name:
            self.is_writing.set()
            assert self.all_submitted.wait(WAIT_S)
        if operation.name == "sync":
            self._num_syncs += 1
            if self._num_syncs > 1:
                raise OSError(errno.EIO, "the power went")


def record(folder: Path, *, num_pages: int) -> Commit:
    """Some acknowledged appends, then a commit of `num_pages` pages, of appends of one to three records."""
    chance, interrupted = random.Random(num_pages), _Interrupted()
    writer = _open(folder, epoch=1, create=True)
    kept = [writer.append([(2, chance.randbytes(300))]) for _ in range(3)]
    with watched(folder, before=interrupted):
        first = writer.submit([(2, b"the last one that was acknowledged")])
        assert interrupted.is_writing.wait(WAIT_S)
        futures, num_bytes = list[Future[list[int]]](), 0
        while num_bytes < num_pages * PAGE_BYTES - 1000:
            batch = [(2, chance.randbytes(chance.randrange(40, 700))) for _ in range(1 + len(futures) % 3)]
            futures.append(writer.submit(batch))
            num_bytes += sum(len(payload) + 48 + 32 * (folder.name == "control") for _, payload in batch)
        interrupted.all_submitted.set()
        kept.append(first.result())
        for future in futures:
            with suppress(StoreStoppedError):
                future.result()
        files = _read(folder)
        writer.close()
    (segment,) = folder.glob("*.seg")
    again = _open(folder, epoch=2)  # which finds all of it
    again.close()
    every = read_records(folder)
    begin = next(lsn for lsn, _, _ in every if lsn > kept[-1][-1])
    sizes = [1] * len(kept) + [1 + number % 3 for number in range(len(futures))]
    firsts = {every[sum(sizes[:number])][0] for number in range(len(sizes))}
    story = Story(Recorder(folder), kept, every, firsts)
    return Commit(story, files, segment.relative_to(folder.parent).as_posix(), begin, again.recovery.end_lsn)


def list_outcomes(commit: Commit, way: str) -> Iterator[Outcome]:
    """Every one, once."""
    begin, end = commit.begin, commit.end
    sectors, pages = (_cut_up(begin, end, size) for size in (SECTOR_BYTES, PAGE_BYTES))
    match way:
        case "pages":
            for number in range(1 << len(pages)):
                lost = [page for place, page in enumerate(pages) if number >> place & 1]
                for mark in ("", "watermark"):
                    yield commit.outcome(f"without pages {lost}, without {mark}", _zero(*lost), without=mark)
        case "sectors lost":
            for sector in sectors:
                yield commit.outcome(f"without sector {sector}", _zero(sector))
        case "sectors swapped":
            whole = [sector for sector in sectors if sector[1] - sector[0] == SECTOR_BYTES]
            for one, other in combinations(whole, 2):
                yield commit.outcome(f"sectors {one} and {other} swapped", _swap(one, other))
        case "cut":
            for at in range(begin, end):
                yield commit.outcome(f"zeros from {at}", _zero((at, end)))
        case "shortened":
            for at in range(begin, end):
                yield commit.outcome(f"ends at {at}", _shorten(at))


def _cut_up(begin: int, end: int, size: int) -> list[tuple[int, int]]:
    return [(max(begin, at), min(end, at + size)) for at in range(begin - begin % size, end, size)]


def _zero(*ranges: tuple[int, int]) -> Callable[[bytearray], None]:
    def change(data: bytearray) -> None:
        for start, stop in ranges:
            data[start:stop] = bytes(stop - start)

    return change


def _swap(one: tuple[int, int], other: tuple[int, int]) -> Callable[[bytearray], None]:
    def change(data: bytearray) -> None:
        data[slice(*one)], data[slice(*other)] = data[slice(*other)], data[slice(*one)]

    return change


def _shorten(at: int) -> Callable[[bytearray], None]:
    def change(data: bytearray) -> None:
        del data[at:]

    return change


def _read(folder: Path) -> Files:
    files = {f"{folder.name}/{path.name}": path.read_bytes() for path in sorted(folder.iterdir())}
    return {folder.name: None, **{name: (data, len(data)) for name, data in files.items()}}


def _open(folder: Path, *, epoch: int, create: bool = False) -> LogWriter:
    return LogWriter.open(
        folder,
        store_uuid=STORE,
        epoch=epoch,
        create=create,
        chained=folder.name == "control",
        segment_bytes=SEGMENT_BYTES,
        commit_wait_s=WAIT_S,  # all that is queued is one commit, however busy the machine is
        strict=True,
    )


def try_all(scratch: Path, *, log: str, way: str, most: int = 0) -> tuple[int, int]:
    """(outcomes, of them tried). AssertionError where a promise was broken. `most`: drawn at random, 0: all."""
    commit = record(scratch / "written" / log, num_pages=NUM_PAGES.get(way, MOST_PAGES))
    outcomes = list(list_outcomes(commit, way))
    chosen = random.Random(0).sample(outcomes, most) if 0 < most < len(outcomes) else outcomes
    with unsynced():
        for outcome in chosen:
            check(outcome, scratch / "lost" / log, commit.story)
    return len(outcomes), len(chosen)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--most", type=int, default=0, help="outcomes of each kind, drawn at random (default: all)")
    parser.add_argument("--log", choices=LOGS, action="append", help="this one alone")
    options = parser.parse_args()
    logs = options.log or LOGS
    counted: dict[str, dict[str, int]] = {log: {} for log in logs}
    began_s = time.monotonic()
    for log in logs:
        for way in WAYS:
            with tempfile.TemporaryDirectory(prefix="ratchet-commit-") as scratch:
                _, counted[log][way] = try_all(Path(scratch), log=log, way=way, most=options.most)
    print(json.dumps({**counted, "faults": 0, "wall_s": round(time.monotonic() - began_s, 1)}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
