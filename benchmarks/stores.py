"""One life of a store, in a process of its own: what benchmarks/store.py and store_growth.py call, and kill.

    python -m benchmarks.stores fill FOLDER --records N --bytes B    appends until N are there, then dies by SIGKILL
    python -m benchmarks.stores produce FOLDER --bytes B    how fast several producers append at once
    python -m benchmarks.stores snapshot FOLDER --records N --bytes B    what snapshots cost those who write
    python -m benchmarks.stores open FOLDER      how long an owner takes to open it, and what it holds in memory
    python -m benchmarks.stores sample FOLDER    how fast 64 records are drawn, and what a reader holds

Each prints one line of JSON. `fill` is a run without engine and learner: leases, groups of 8, batches, versions.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.processes import anonymous_bytes
from buffers import snapshots
from buffers.log.reader import LogReader
from buffers.owner import StoreOwner, episode_id
from buffers.replaying import ReplayReader
from configs.schema import RunConfig
from contracts.protocols import BatchRequest
from contracts.records import Episode, Lease, Purpose, Served, Session, Span, Step, StopReason, Version

GROUP_SIZE, GROUPS = 8, 16
BATCH = GROUP_SIZE * GROUPS
DRAWN = 64
LAST = 20  # appends that the rate at the end is measured over
MIN_AT_ONCE, MAX_AT_ONCE, ROUNDS = 64, 256, 5  # groups that several producers append in one round; rounds
NUM_SNAPSHOTS, NUM_USUAL = 5, 300  # snapshots; appends before them
PRODUCERS = {"4 producers": (4, BATCH), "32 producers": (32, 1)}  # producers, records an append

Numbers = dict[str, float]


def run_config(*, num_groups: int = GROUPS) -> RunConfig:
    return RunConfig.model_validate(
        {
            "steps": 1 << 40,
            "learner": {"groups_per_step": num_groups, "group_size": GROUP_SIZE},
            "store": {"reserve_mib": 0, "index_map_mib": 1 << 15},
        }
    )


def name_task(position: int) -> tuple[str, int]:
    return f"task/{position}", position


class Life:
    """A producer and a learner of one store, taking turns: `num_groups` groups of 8 each time."""

    def __init__(self, owner: StoreOwner, *, record_bytes: int, num_groups: int = GROUPS) -> None:
        self.owner, self._num_groups = owner, num_groups
        self.epoch, self.seq = owner.attach("bench"), 0
        self.session = owner.open_session(Session(role="learner", epoch=owner.epoch))
        status = owner.status()
        head, step = status["head"], status["step"]
        assert isinstance(step, int)
        self.step = step
        self.head = head if isinstance(head, int) else -1
        self._version(-1)
        num_tokens = max(1, (record_bytes - 300) // 9)  # an observation of an eighth, actions, log-probs
        self._step = Step(
            observation=np.arange(num_tokens // 4, dtype=np.int32),
            action=np.arange(num_tokens, dtype=np.int32),
            log_probs=np.full(num_tokens, -0.5, dtype=np.float32),
        )
        self._label = run_config().environment.label

    def play(self, append: Callable[[Sequence[Episode]], object] | None = None) -> float:
        """The groups' records, appended at once or as `append` does it, and the batch that trains on them; the
        append's seconds."""
        leases: list[Lease] = []
        while len(leases) < self._num_groups:
            leases += self.owner.lease("bench", self.epoch, max_tasks=self._num_groups - len(leases))
        episodes = [self._make(lease, member) for lease in leases for member in lease.missing]
        start = time.perf_counter()
        (append or self.owner.append)(episodes)
        seconds = time.perf_counter() - start
        request = BatchRequest(
            session=self.session, branch=0, step=self.step + 1, parent_version=self.head, num_groups=self._num_groups,
            max_staleness=1 << 40, seed=1, coefficients={},
        )  # fmt: skip
        cut = self.owner.append_batch(request)
        if cut is not None:
            self.step += 1
            self._version(cut[0])
        return seconds

    def _version(self, batch_lsn: int) -> None:
        number = self.head + 1
        version = Version(
            version=number, parent=self.head, branch=0, step=self.step, root_hash=f"{number:064d}", batch_lsn=batch_lsn
        )
        self.owner.decide(version, self.session)
        self.owner.decide(Served(version=number, gap=0.0), self.session)
        self.head = number

    def _make(self, lease: Lease, member: int) -> Episode:
        self.seq += 1
        return Episode(
            episode_id=episode_id(str(self.owner.uuid), lease.lsn, member),
            lease=lease.lsn,
            member=member,
            task_id=lease.task.task_id,
            environment=self._label,
            environment_version="1",
            purpose=Purpose.TRAIN,
            steps=(self._step,),
            spans=(Span(start=0, version=self.head),),
            stop_reason=StopReason.TERMINATED,
            reward=float(member),
            producer="bench",
            producer_epoch=self.epoch,
            seq=self.seq,
            wall_time=time.time(),
        )


def open_store(folder: Path, *, create: bool = False, num_groups: int = GROUPS) -> StoreOwner:
    return StoreOwner.open(folder, config=run_config(num_groups=num_groups), source=name_task, create=create)


def fill(folder: Path, *, num_records: int, record_bytes: int) -> Numbers:
    """Append until the store holds `num_records`. `append` is the rate of the last appends."""
    owner = open_store(folder, create=not (folder / "store.json").exists())
    life, seconds = Life(owner, record_bytes=record_bytes), []
    while owner.ledger().episodes < num_records:
        seconds.append(life.play())
    status = owner.status()
    return {
        "records": owner.ledger().episodes,
        "append": BATCH / statistics.median(seconds[-LAST:]),
        "owner_bytes": anonymous_bytes(),
        "data_bytes": float(str(status["data_lsn"])),
        "indexed": float(str(status["indexed_lsn"])) / float(str(status["data_lsn"])),
    }


def produce(folder: Path, *, record_bytes: int) -> Numbers:
    """Records a second of several producers at once, each waiting for its acknowledgement before the next append."""
    num_groups = max(MIN_AT_ONCE, min(MAX_AT_ONCE, (32 << 20) // (GROUP_SIZE * record_bytes)))
    owner = open_store(folder, create=True, num_groups=num_groups)

    def append_all(parts: Sequence[Sequence[Episode]]) -> None:
        for part in parts:
            owner.append(part)

    life = Life(owner, record_bytes=record_bytes, num_groups=num_groups)
    numbers = {}
    for name, (num_producers, size) in PRODUCERS.items():
        with ThreadPoolExecutor(num_producers) as pool:

            def append(
                episodes: Sequence[Episode], pool: Executor = pool, num: int = num_producers, size: int = size
            ) -> None:
                parts = [episodes[place : place + size] for place in range(0, len(episodes), size)]
                list(pool.map(append_all, [parts[place::num] for place in range(num)]))

            life.play(append)  # threads start, plans are made
            seconds = [life.play(append) for _ in range(ROUNDS)]
        numbers[name] = num_groups * GROUP_SIZE / statistics.median(seconds)
    owner.close()
    return numbers


def snapshot(folder: Path, *, num_records: int, record_bytes: int) -> Numbers:
    """Appends of 8 records into a run of `num_records`, while another process makes snapshots of it."""
    for name in ("config.yaml", "manifest.json"):
        folder.mkdir(exist_ok=True)
        (folder / name).write_text("{}\n")
    owner = open_store(folder / "store", create=True)
    life = Life(owner, record_bytes=record_bytes)
    while owner.ledger().episodes < num_records:
        life.play()
    owner.close()
    owner = open_store(folder / "store", num_groups=1)
    life = Life(owner, record_bytes=record_bytes, num_groups=1)
    usual, meanwhile = [life.play() for _ in range(NUM_USUAL)], []
    command = [sys.executable, "-m", "benchmarks.stores", "snap", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        while child.poll() is None:
            began = time.time()
            meanwhile.append((began, life.play(), time.time()))
        assert child.stdout is not None
        made = json.loads(child.stdout.read())
    owner.close()
    beside = [seconds for began, seconds, end in meanwhile if any(began < stop and start < end for start, stop in made)]
    return {
        "snapshot, ms": statistics.median(stop - start for start, stop in made) * 1e3,
        "append p99, ms": float(np.quantile(usual, 0.99)) * 1e3,
        "append p99 during snapshots, ms": float(np.quantile(beside, 0.99)) * 1e3,
    }


def snap(folder: Path) -> list[tuple[float, float]]:
    """When each of a few snapshots began and ended, s since 1970."""
    made = []
    for number in range(NUM_SNAPSHOTS):
        start = time.time()
        snapshots.create(folder, f"number-{number}")
        made.append((start, time.time()))
        snapshots.delete(folder, f"number-{number}")
        time.sleep(0.1)
    return made


def time_open(folder: Path) -> Numbers:
    """Once on another store first: imports and plans of records are the process's, not the store's."""
    with tempfile.TemporaryDirectory(dir=folder.parent) as other:
        for create in (True, False):
            open_store(Path(other), create=create).close()
    unsealed = count_unsealed(folder)
    start = time.perf_counter()
    owner = open_store(folder)
    seconds = time.perf_counter() - start
    numbers = {
        "open_ms": seconds * 1e3,
        "records": owner.ledger().episodes,
        "unsealed": unsealed,
        "read_again": owner._state.data.writer.recovery.num_frames,
        "owner_bytes": anonymous_bytes(),
    }
    owner.close()
    return numbers


def count_unsealed(folder: Path) -> int:
    """Records in the segment that was being written."""
    reader = LogReader(folder / "data")
    return sum(1 for _ in reader.scan(reader.segments()[-1].start_lsn))


def sample(folder: Path) -> Numbers:
    """Draws a second: uniform ones as views and as one copy; by priority with an update of what was drawn."""
    before = anonymous_bytes()
    with ReplayReader.open(folder) as reader:
        grown = anonymous_bytes() - before
        rng = np.random.default_rng(0)

        def draw(seed: int) -> None:
            b"".join(reader.payloads(reader.draw_uniform(DRAWN, seed=seed).lsns))

        def draw_views(seed: int) -> None:
            reader.payloads(reader.draw_uniform(DRAWN, seed=seed).lsns)

        def draw_and_update(seed: int) -> None:
            drawn = reader.draw_by_priority(DRAWN, seed=seed, beta=0.5)
            b"".join(reader.payloads(drawn.lsns))
            reader.set_priorities(drawn.rows, rng.integers(1, 1 << 20, size=DRAWN))

        numbers = {"rows": float(reader.num_rows), "reader_bytes": float(grown)}
        numbers["sample"], numbers["sample_views"] = rate(draw), rate(draw_views)
        reader.set_priorities(np.arange(reader.num_rows), rng.integers(1, 1 << 20, size=reader.num_rows))
        numbers["prioritised"] = rate(draw_and_update)
    return numbers


def rate(act: Callable[[int], object], *, seconds: float = 1.0) -> float:
    """Calls a second, after a tenth of the time to warm up."""
    number, measured, start = 0, 0, time.perf_counter()
    while (passed := time.perf_counter() - start) < seconds * 1.1:
        act(number)
        number += 1
        measured += passed > seconds * 0.1
    return measured / seconds


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["fill", "produce", "snapshot", "snap", "open", "sample"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--records", type=int, default=10_000)
    parser.add_argument("--bytes", type=int, default=8_192)
    options = parser.parse_args(arguments)
    if options.what == "fill":
        print(json.dumps(fill(options.folder, num_records=options.records, record_bytes=options.bytes)), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    acts: dict[str, Callable[[Path], object]] = {
        "produce": partial(produce, record_bytes=options.bytes),
        "snapshot": partial(snapshot, num_records=options.records, record_bytes=options.bytes),
        "snap": snap,
        "open": time_open,
        "sample": sample,
    }
    print(json.dumps(acts[options.what](options.folder)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
