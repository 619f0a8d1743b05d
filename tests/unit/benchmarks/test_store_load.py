"""What the benchmark of a store under load counts, and that its oracle hears everybody; whole: tests/crash."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from benchmarks.observed import Frames, Look, Memory, compare, group_of, name_bottleneck
from benchmarks.processes import ThreadUse, thread_seconds
from benchmarks.producers import Learner, Scene, Site, fence, produce
from benchmarks.stage import STALENESS, Ears, Size, configure, summarise
from benchmarks.store_load import judge
from buffers.owner import StoreOwner
from loops.tasks import task_source
from tests.contract.stores import served, small_config
from tests.crash.store import Oracle, find_faults, make_run_folder

SIZE = Size(groups=8)


def set_scene(folder: Path, owner: StoreOwner, *, environment: str) -> tuple[Scene, Ears]:
    ears = Ears(folder / "pipe")
    ears.start()
    np.zeros(1, dtype=np.int64).tofile(folder / "served")
    paths = {"pipe": str(folder / "pipe"), "served": str(folder / "served")}
    return Scene(uuid=str(owner.uuid), environment=environment, num_tokens=20, **paths), ears


@contextmanager
def opened(folder: Path) -> Iterator[StoreOwner]:
    config = configure(SIZE)
    owner = StoreOwner.open(folder / "store", config=config, source=task_source(config), create=True)
    try:
        yield owner
    finally:
        owner.close()


def test_every_promise_is_heard_and_kept(tmp_path: Path) -> None:
    folder = make_run_folder(tmp_path, number=0)
    with opened(folder) as owner:
        scene, ears = set_scene(folder, owner, environment=configure(SIZE).environment_label)
        site = Site(scene)
        site.tell("open", owner.epoch)
        learner = Learner(owner, site, num_groups=SIZE.groups, max_staleness=STALENESS)
        learner.start()
        names = [f"in-process-{number}" for number in range(8)]
        waits = produce(owner, site, names=names, until=time.time() + 1.0, every_s=0.0)
        learner.stop()
    oracle = ears.finish()
    assert find_faults(folder, oracle) == []
    assert len(oracle.episodes) == len(waits.append_s) > 8
    assert learner.step > 0
    frames = Frames(folder / "store" / "data")
    assert set(oracle.episodes) | oracle.tasks == set(frames.lsns.tolist())
    assert frames.commit_sizes(0, 1 << 60)["mean"] >= 1
    assert frames.is_heard(frames.lsns[3:9], start=int(frames.lsns[3]))
    assert not frames.is_heard(frames.lsns[4:9], start=int(frames.lsns[3]))
    assert not frames.is_heard(frames.lsns[[3, 5]], start=int(frames.lsns[3]))
    assert summarise([waits], seconds=1.0)["records_per_s"] == len(waits.append_s)


def test_a_producer_whose_name_was_taken_is_told_so(tmp_path: Path) -> None:
    config = small_config(steps=100, max_staleness=9)
    with served(tmp_path, config, token=None) as (server, owner):
        scene, ears = set_scene(tmp_path, owner, environment=config.environment_label)
        Learner(owner, Site(scene), num_groups=1, max_staleness=9)
        told = fence(server.address, scene)
        assert told.keys() == {"append", "lease"}
        assert all("epoch" in said for said in told.values())
        assert owner.ledger().episodes == 2
    assert isinstance(ears.finish(), Oracle)


def looks() -> tuple[Look, Look]:
    threads = {1: ThreadUse("a", 1.0, 0.0), 2: ThreadUse("b", 5.0, 1.0)}
    later = {1: ThreadUse("a", 3.0, 1.0), 2: ThreadUse("b", 5.5, 1.0), 3: ThreadUse("c", 0.5, 0.0)}
    log = {"commits": 10.0, "frames": 100.0, "commit_s_total": 1.0, "sync_s_total": 0.5}
    after = {"commits": 30.0, "frames": 500.0, "commit_s_total": 2.0, "sync_s_total": 1.0}
    tails = {"commit_p50_s": 0.001, "commit_p99_s": 0.002}
    names = {1: "in-process-7", 2: "log-data"}
    return (
        Look(time_s=10.0, threads=threads, names=names, processes={(1, 0.0): ("store", 4.0)}, log=log, data_lsn=0),
        Look(
            time_s=12.0, threads=later, names=names, processes={(1, 0.0): ("store", 7.0)}, log=after | tails, data_lsn=9
        ),
    )


def test_what_threads_used_is_summed_by_what_they_are_for() -> None:
    row = compare(*looks())
    assert row["cores_of_owner"] == {"producers in process": 1.0, "data log": 0.25, "Ray and gRPC, native": 0.25}
    assert row["python_cores_of_owner"] == 1.25
    assert (row["records_per_s"], row["commits_per_s"]) == (200.0, 10.0)
    assert (row["log_busy"], row["log_syncing"]) == (0.5, 0.25)
    assert row["cores"] == {"store": 1.5}
    assert name_bottleneck(row).startswith("the owner's interpreter, in use 125%")
    assert name_bottleneck({**row, "log_syncing": 1.3}).startswith("the disk")
    assert group_of("Thread-3 (_serve)") == "gRPC calls"


def test_a_threads_seconds_rise_with_its_work() -> None:
    me = threading.get_native_id()
    before = thread_seconds(os.getpid())[me].cpu_s
    while time.thread_time() < 0.05 or thread_seconds(os.getpid())[me].cpu_s <= before:
        continue
    assert set(thread_seconds(os.getpid())) >= {me}


def test_memory_is_summed_up_by_role() -> None:
    memory, sizes = Memory(os.getpid()), {"x": 5 << 20, "y": 7 << 20}
    memory.watch("x", "a producer", lambda: sizes["x"])
    memory.watch("y", "a producer", lambda: sizes["y"])
    memory.mark()
    sizes["x"] = 6 << 20
    memory.start()
    while memory.summarise()[1]["grown_mib"] != 1.0:
        time.sleep(0.01)
    memory.stop()
    rows = {row["role"]: row for row in memory.summarise()}
    assert rows["a producer"] == {"role": "a producer", "number": 2, "mib": 7.0, "grown_mib": 1.0}
    assert rows["the store"]["mib"] > 1


@pytest.mark.parametrize(("faults", "grown", "told"), [(["lost"], 0.0, 2), ([], 70.0, 2), ([], 0.0, 1)])
def test_goals_say_what_was_missed(faults: list[str], grown: float, told: int) -> None:
    memory = [{"role": "the store", "grown_mib": grown}, {"role": "slow tailer", "grown_mib": 1.0}]
    refusals = {f"call {number}": "the epoch is over" for number in range(told)}
    goals = judge({"memory": memory, "told": refusals, "faults": faults})
    assert sum(not goal["met"] for goal in goals) == 1
