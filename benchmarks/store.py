"""The experience store beside others on the same disk, in the same run: `python -m benchmarks.store`.

Appends are durable when they return: raw (a preallocated file, write and fdatasync: the floor under every log), the
store's log, the whole store (leases, checks, fold, index), LMDB, and SQLite with synchronous=FULL. Not durable, in
environments of their own (benchmarks/store_child.py): cpprb and Reverb in memory, torchrl in mapped files; flushed ones
are. A sample is 64 whole records, copied into one buffer; the same copies in memory are the limit of this machine. The
rounds take turns, so that all see the same disk; medians. `--alone` leaves the peers' environments out.
"""

from __future__ import annotations

import argparse
import json
import operator
import os
import shutil
import sqlite3
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import lmdb
import numpy as np

from benchmarks.peers import peer_python
from benchmarks.store_growth import call
from benchmarks.stores import BATCH, DRAWN, rate
from buffers.log.writer import LogWriter

KINDS = {"tokens": 8_300, "screenshots": 151_000}  # bytes of a record
SAMPLE_GOALS = {"tokens": 0.7, "screenshots": 0.6}  # of cpprb's draws
SNAPSHOT_RECORDS = 10_000  # fewer screenshots: as many as are sampled
HELD_BYTES = 200 << 20  # of records, in what is sampled
PEERS = {"cpprb": "replay", "torchrl": "replay", "torchrl-flushed": "replay", "reverb": "reverb"}  # and environments
CHILD = Path(__file__).with_name("store_child.py")
NUM_PRODUCERS = 32
KIND = 3  # of a record, for the log
RAW_BYTES = 1 << 30  # of a preallocated file; when it is full another follows: an append never overwrites

Append = Callable[[Sequence[bytes]], object]


@contextmanager
def raw(folder: Path) -> Iterator[Append]:
    fd, place = -1, RAW_BYTES

    def append(records: Sequence[bytes]) -> None:
        nonlocal fd, place
        num_bytes = sum(map(len, records))
        if place + num_bytes > RAW_BYTES:
            if fd >= 0:
                os.close(fd)
            fd, place = preallocate(folder / "raw"), 0
        os.pwritev(fd, records, place)
        place += num_bytes
        os.fdatasync(fd)

    try:
        yield append
    finally:
        os.close(fd)


def preallocate(path: Path) -> int:
    path.unlink(missing_ok=True)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    os.posix_fallocate(fd, 0, RAW_BYTES)
    os.fsync(fd)
    return fd


@contextmanager
def opened_log(folder: Path) -> Iterator[LogWriter]:
    writer = LogWriter.open(folder / "data", store_uuid=uuid4(), epoch=1, create=True)
    try:
        yield writer
    finally:
        writer.close()


@contextmanager
def log(folder: Path) -> Iterator[Append]:
    with opened_log(folder) as writer:
        yield lambda records: writer.append([(KIND, record) for record in records])


@contextmanager
def in_lmdb(folder: Path) -> Iterator[Append]:
    env = lmdb.open(str(folder / "lmdb"), map_size=64 << 30)
    number = 0

    def append(records: Sequence[bytes]) -> None:
        nonlocal number
        with env.begin(write=True) as transaction:
            for record in records:
                transaction.put(number.to_bytes(8, "big"), record, append=True)
                number += 1

    try:
        yield append
    finally:
        env.close()


@contextmanager
def in_sqlite(folder: Path) -> Iterator[Append]:
    base = sqlite3.connect(folder / "base.sqlite")
    base.execute("PRAGMA journal_mode=WAL")
    base.execute("PRAGMA synchronous=FULL")
    base.execute("CREATE TABLE records (payload BLOB)")

    def append(records: Sequence[bytes]) -> None:
        with base:
            base.executemany("INSERT INTO records VALUES (?)", [(record,) for record in records])

    try:
        yield append
    finally:
        base.close()


WRITERS = {"raw": raw, "log": log, "lmdb": in_lmdb, "sqlite": in_sqlite}


def measure_appends(folder: Path, *, num_bytes: int, seconds: float) -> dict[str, float]:
    """Records a second of each writer at each batch size, and of 32 producers with single records into the log."""
    records = [os.urandom(num_bytes) for _ in range(BATCH)]
    found = {}
    for name, writer in WRITERS.items():
        for size in (1, 16, BATCH):
            with place(folder) as here, writer(here) as append:
                found[f"{name}, batch {size}"] = size * rate(repeat(append, records[:size]), seconds=seconds)
    with place(folder) as here, opened_log(here) as shared, ThreadPoolExecutor(NUM_PRODUCERS) as pool:
        found[f"log, {NUM_PRODUCERS} producers"] = measure_producers(shared, records[0], pool, seconds=seconds)
    return found


def repeat(append: Append, records: Sequence[bytes]) -> Callable[[int], object]:
    return lambda _: append(records)


def measure_producers(writer: LogWriter, record: bytes, pool: ThreadPoolExecutor, *, seconds: float) -> float:
    end = time.perf_counter() + seconds

    def produce(_: int) -> int:
        count = 0
        while time.perf_counter() < end:
            writer.append([(KIND, record)])
            count += 1
        return count

    return sum(pool.map(produce, range(NUM_PRODUCERS))) / seconds


def measure_store(folder: Path, *, num_bytes: int, num_records: int, seconds: float) -> dict[str, float]:
    """A store filled, killed, opened, sampled; and what it takes on disk beside what went in."""
    with place(folder) as here:
        store = here / "store"
        filled = call("fill", store, "--records", str(num_records), "--bytes", str(num_bytes))
        produced = call("produce", here / "shared", "--bytes", str(num_bytes))
        kept = min(SNAPSHOT_RECORDS, num_records)
        snapped = call("snapshot", here / "run", "--records", str(kept), "--bytes", str(num_bytes))
        opened, sampled = call("open", store), call("sample", store)
        files = [path for path in store.rglob("*") if path.is_file() and path.suffix != ".seg"]
        beside = sum(path.stat().st_blocks * 512 for path in files)
    payload = filled["records"] * num_bytes
    return {
        f"store, batch {BATCH}": filled["append"],
        **{f"store, {name}": value for name, value in produced.items()},
        **snapped,
        "open, ms": opened["open_ms"],
        "records in the unsealed segment": opened["unsealed"],
        "records read again": opened["read_again"],
        "disk / payload": (filled["data_bytes"] + beside) / payload,
        "store, sample": sampled["sample"],
        "store, sample without copies": sampled["sample_views"],
        "store, by priority": sampled["prioritised"],
        "memory, sample": measure_memory(num_bytes, num_records=num_records, seconds=seconds),
    }


def measure_memory(num_bytes: int, *, num_records: int, seconds: float) -> float:
    """Draws a second from one array in memory: nothing but the copy."""
    rows = np.ones((num_records, num_bytes), dtype=np.uint8)
    out = np.empty((DRAWN, num_bytes), dtype=np.uint8)
    rng = np.random.default_rng(0)
    return rate(
        lambda _: rows.take(rng.integers(num_records, size=DRAWN), axis=0, out=out, mode="clip"), seconds=seconds
    )


def measure_peers(folder: Path, *, num_bytes: int, num_records: int, seconds: float) -> dict[str, float]:
    """Every peer of benchmarks/store_child.py; without what it cannot do."""
    found: dict[str, float] = {}
    for peer, environment in PEERS.items():
        with place(folder) as here:
            command = [str(peer_python(environment)), str(CHILD), peer, "--folder", str(here)]
            command += ["--bytes", str(num_bytes), "--records", str(num_records), "--seconds", str(seconds)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
            numbers = json.loads(done.stdout.splitlines()[-1])
        if why := numbers.pop("why", None):
            print(f"{peer}: {why}")
        found |= {f"{peer}, {name}": value for name, value in numbers.items() if value is not None}
    return found


@contextmanager
def place(folder: Path) -> Iterator[Path]:
    here = Path(tempfile.mkdtemp(dir=folder))
    try:
        yield here
    finally:
        shutil.rmtree(here)


def measure(folder: Path, *, num_bytes: int, seconds: float, with_peers: bool) -> dict[str, float]:
    """One round: every row."""
    num_records = HELD_BYTES // num_bytes
    found = measure_appends(folder, num_bytes=num_bytes, seconds=seconds)
    found |= measure_store(folder, num_bytes=num_bytes, num_records=num_records, seconds=seconds)
    if with_peers:
        found |= measure_peers(folder, num_bytes=num_bytes, num_records=num_records, seconds=seconds)
    return found


def judge(kind: str, row: dict[str, float]) -> list[dict[str, object]]:
    floor, memory = row[f"raw, batch {BATCH}"], row["memory, sample"]
    at_least = [
        ("log at batch 128 / raw", 0.9, row[f"log, batch {BATCH}"] / floor),
        ("store at batch 128 / raw", 0.9, row[f"store, batch {BATCH}"] / floor),
        ("store, 4 producers with 128 records / raw", 0.9, row["store, 4 producers"] / floor),
        ("log, 32 producers with single records / raw", 0.4, row[f"log, {NUM_PRODUCERS} producers"] / floor),
        ("store, 32 producers with single records / raw", 0.4, row["store, 32 producers"] / floor),
        ("sample / the same copies in memory", 0.6, row["store, sample"] / memory),
    ]
    if "cpprb, sample" in row:
        by_priority = row["store, by priority"]
        at_least += [
            ("sample / cpprb", SAMPLE_GOALS[kind], row["store, sample"] / row["cpprb, sample"]),
            ("prioritised sample and update / cpprb", 0.5, by_priority / row["cpprb, prioritised"]),
            ("prioritised sample and update / Reverb", 20.0, by_priority / row["reverb, prioritised"]),
        ]
    most_ms = 10 + 2.5 * row["records in the unsealed segment"] / 1000
    at_most = [
        ("disk / payload", 1.02, row["disk / payload"]),
        ("append p99 during snapshots / p99", 2.0, row["append p99 during snapshots, ms"] / row["append p99, ms"]),
        ("open, ms, at most 10 + 2.5 a thousand records of the unsealed segment", most_ms, row["open, ms"]),
    ]
    if kind == "tokens":
        at_most.append((f"snapshot of {SNAPSHOT_RECORDS:,} records, ms", 15.0, row["snapshot, ms"]))
    return [
        {"name": f"{kind}: {name}", "goal": goal, "measured": round(measured, 3), "met": met}
        for goals, is_met in ((at_least, operator.ge), (at_most, operator.le))
        for name, goal, measured in goals
        for met in (is_met(measured, goal),)
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one round of a third of the time, tokens only")
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="of one measurement")
    parser.add_argument("--alone", action="store_true", help="without the peers that need environments of their own")
    parser.add_argument("--folder", type=Path, default=None, help="on the disk to measure; emptied afterwards")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    if options.quick:
        options.kinds, options.rounds, options.seconds = ["tokens"], 1, 0.3
    rows, goals = [], []
    with tempfile.TemporaryDirectory(prefix="ratchet-store-", dir=options.folder) as scratch:
        for kind in options.kinds:
            rounds = [
                measure(Path(scratch), num_bytes=KINDS[kind], seconds=options.seconds, with_peers=not options.alone)
                for _ in range(options.rounds)
            ]
            row = {name: statistics.median(one[name] for one in rounds) for name in rounds[0]}
            for name, value in row.items():
                print(f"{kind:>12}  {name:<32} {value:>12,.2f}")
            rows += [
                {"kind": kind, "name": name, "value": value, "rounds": [one[name] for one in rounds]}
                for name, value in row.items()
            ]
            goals += judge(kind, row)
    for goal in goals:
        print(f"{goal['name']}: {goal['measured']} (goal {goal['goal']}), {'met' if goal['met'] else 'missed'}")
    if options.json:
        options.json.write_text(json.dumps({"rows": rows, "goals": goals}, indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
