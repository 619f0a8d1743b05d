"""Who uses the store in benchmarks/store_load.py: producers, a learner, and over gRPC, in processes of their own:

    python -m benchmarks.producers produce SCENE ADDRESS NAME THREADS    over gRPC; a line `UNTIL EVERY` of its input is
                                                                         one stretch of work, answered by a line of JSON
    python -m benchmarks.producers follow ADDRESS START PAUSE FILE       a tailer; the LSNs that it heard go into FILE

Every producer is a rollout worker without its engine: it leases a task, makes the members, appends each by itself and
waits for the answer. What the store promises is told to the oracle's pipe (tests/crash/store.py), one line a promise,
before anything else is done.
"""

from __future__ import annotations

import dataclasses
import json
import os
import random
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import numpy as np

from buffers.owner import episode_id
from contracts.errors import FencedError
from contracts.protocols import BatchRequest, Store
from contracts.records import Episode, Lease, Purpose, Served, Session, Span, Step, StopReason, Version

WAIT_S = 0.5  # for a task
IDLE_S = 0.02  # after none came


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What all of them must know. Paths are of one machine."""

    uuid: str
    environment: str
    pipe: str  # to the oracle
    served: str  # a file with the newest version that is served, as the engines would say it: int64
    num_tokens: int


@dataclass
class Waits:
    """Seconds: of each append, and of each lease that was given."""

    append_s: list[float] = field(default_factory=list)
    lease_s: list[float] = field(default_factory=list)

    def add(self, other: Waits) -> None:
        self.append_s += other.append_s
        self.lease_s += other.lease_s


class Site:
    """A process's end of the pipe, and what its producers make episodes of."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self._pipe = os.open(scene.pipe, os.O_WRONLY)
        self._served = np.memmap(scene.served, dtype=np.int64, mode="r")
        self._step = Step(
            observation=np.arange(scene.num_tokens // 4, dtype=np.int32),
            action=np.arange(scene.num_tokens, dtype=np.int32),
            log_probs=np.full(scene.num_tokens, -0.5, dtype=np.float32),
        )

    def tell(self, *words: object) -> None:
        """One line of less than a page: it comes whole or not at all."""
        os.write(self._pipe, (" ".join(map(str, words)) + "\n").encode())

    def make(self, lease: Lease, member: int, *, producer: str, epoch: int, seq: int) -> Episode:
        return Episode(
            episode_id=episode_id(self.scene.uuid, lease.lsn, member),
            lease=lease.lsn,
            member=member,
            task_id=lease.task.task_id,
            environment=self.scene.environment,
            environment_version="1",
            purpose=Purpose.TRAIN,
            steps=(self._step,),
            spans=(Span(start=0, version=int(self._served[0])),),
            stop_reason=StopReason.TERMINATED,
            reward=float(member % 2),
            producer=producer,
            producer_epoch=epoch,
            seq=seq,
            wall_time=time.time(),
        )


class Producer:
    """One name's episodes. Single-threaded."""

    def __init__(self, store: Store, site: Site, *, name: str) -> None:
        self._store, self._site, self._name = store, site, name
        self._epoch, self._seq, self.waits = store.attach(name), 0, Waits()

    def run(self, *, until: float, every_s: float) -> Self:
        """Until that time (s since 1970); `every_s` apart on average, or 0: as fast as answers come."""
        pace = random.Random(self._name)
        while time.time() < until:
            for lease in self.lease():
                for member in lease.missing:
                    if every_s:
                        time.sleep(pace.expovariate(1 / every_s))
                    if time.time() > until:
                        return self
                    self.append(lease, member)
        return self

    def lease(self) -> list[Lease]:
        asked = time.perf_counter()
        leases = self._store.lease(self._name, self._epoch, max_tasks=1, wait_s=WAIT_S)
        if leases:
            self.waits.lease_s.append(time.perf_counter() - asked)
        else:
            time.sleep(IDLE_S)
        for lease in leases:
            self._site.tell("task", lease.lsn)
        return leases

    def append(self, lease: Lease, member: int) -> None:
        self._seq += 1
        episode = self._site.make(lease, member, producer=self._name, epoch=self._epoch, seq=self._seq)
        asked = time.perf_counter()
        (ack,) = self._store.append([episode])
        self.waits.append_s.append(time.perf_counter() - asked)
        if ack.fault is not None:
            self._site.tell("fault", f"quarantined: {ack}")
        self._site.tell("late" if ack.late else "episode", ack.lsn, episode.episode_id)


def produce(store: Store, site: Site, *, names: Sequence[str], until: float, every_s: float) -> Waits:
    """All `names` at once, each on a thread of its own."""

    def run(name: str) -> Waits:
        threading.current_thread().name = name
        return Producer(store, site, name=name).run(until=until, every_s=every_s).waits

    total = Waits()
    with ThreadPoolExecutor(len(names)) as threads:
        for waits in threads.map(run, names):
            total.add(waits)
    return total


# ---------------------------------------------------------------------------------------------- the learner


class Learner(threading.Thread):
    """Cuts batches as soon as they are full, and serves a new version after each."""

    def __init__(self, store: Store, site: Site, *, num_groups: int, max_staleness: int) -> None:
        super().__init__(name="learner")
        self._store, self._site, self._num_groups, self._max_staleness = store, site, num_groups, max_staleness
        self._served = np.memmap(site.scene.served, dtype=np.int64, mode="r+")
        self._session = store.open_session(Session(role="learner", epoch=0))
        self._stopped = threading.Event()
        self.step = 0
        self.fault: BaseException | None = None
        self._version(-1)

    def stop(self) -> None:
        self._stopped.set()
        self.join()
        if self.fault is not None:
            raise self.fault

    def run(self) -> None:
        try:
            while not self._stopped.is_set():
                self._learn()
        except BaseException as error:  # noqa: BLE001  the border of the thread: `stop` raises it
            self.fault = error

    def _learn(self) -> None:
        request = BatchRequest(
            session=self._session, branch=0, step=self.step + 1, parent_version=self.step, num_groups=self._num_groups,
            max_staleness=self._max_staleness, seed=1, coefficients={},
        )  # fmt: skip
        cut = self._store.append_batch(request, wait_s=WAIT_S)
        if cut is None:
            self._stopped.wait(IDLE_S)
            return
        self.step += 1
        self._site.tell("batch", cut[0], self.step)
        self._version(cut[0])

    def _version(self, batch_lsn: int) -> None:
        number = self.step
        version = Version(
            version=number, parent=number - 1, branch=0, step=number, root_hash=f"{number:064d}", batch_lsn=batch_lsn
        )
        self._site.tell("version", self._store.decide(version, self._session), number)
        self._store.decide(Served(version=number, gap=0.0), self._session)
        self._served[0] = number


# ---------------------------------------------------------------------------------------------- over gRPC


def fence(address: str, scene: Scene) -> dict[str, str]:
    """A producer whose name another takes: what it is told when it goes on. Empty where it is not refused."""
    from serving.client import connect

    site = Site(scene)
    with connect(address) as first, connect(address) as second:
        old = Producer(first, site, name="grpc-old")
        (lease,) = old.lease()
        old.append(lease, 0)
        new = Producer(second, site, name="grpc-old")
        told: dict[str, str] = {}
        tries: dict[str, Callable[[], object]] = {"append": lambda: old.append(lease, 1), "lease": old.lease}
        for name, act in tries.items():
            try:
                act()
            except FencedError as error:
                told[name] = str(error)
        (lease,) = new.lease()
        new.append(lease, 0)
    return told


def serve_stretches(scene: Scene, address: str, name: str, num_threads: int) -> None:
    from serving.client import connect

    site, names = Site(scene), [f"{name}-{number}" for number in range(num_threads)]
    with connect(address) as store:
        print("ready", flush=True)
        for line in sys.stdin:
            until, every_s = map(float, line.split())
            waits = produce(store, site, names=names, until=until, every_s=every_s)
            print(json.dumps(dataclasses.asdict(waits)), flush=True)


def follow(address: str, start: int, pause_s: float, file: Path) -> None:
    """Until its input ends; `pause_s` after each record."""
    from serving.client import connect

    with connect(address) as store, file.open("wb", buffering=0) as heard:
        tail = store.tail(start=start)

        def end() -> None:
            sys.stdin.read()
            tail.close()

        threading.Thread(target=end, daemon=True).start()
        print("ready", flush=True)
        for lsn, _record in tail:
            heard.write(lsn.to_bytes(8, "little"))
            if pause_s:
                time.sleep(pause_s)


def main(words: Sequence[str]) -> None:
    if words[0] == "produce":
        serve_stretches(Scene(**json.loads(words[1])), words[2], words[3], int(words[4]))
    else:
        follow(words[1], int(words[2]), float(words[3]), Path(words[4]))


if __name__ == "__main__":
    main(sys.argv[1:])
