"""The stage of benchmarks/store_load.py: a store, all who use it, and the ears of the oracle."""

from __future__ import annotations

import fcntl
import json
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from signal import SIGCONT, SIGKILL, SIGSTOP
from typing import Any

import numpy as np

from actors.process import on_this_node, start
from actors.store import SERVING_FILE
from actors.transport import StoreClient
from benchmarks.loaded import LoadedStore, RayProducer
from benchmarks.observed import Look, Memory, compare, look, name_bottleneck
from benchmarks.producers import Learner, Scene, Site, Waits
from benchmarks.runs import ROOT
from buffers.owner import StoreOwner
from configs.schema import RunConfig
from loops.tasks import task_source
from tests.crash.store import Oracle

NUM_TOKENS = 900  # 8.3 KB with its observation, its log-probabilities and what stands around them
GROUPS, GROUP_SIZE = 512, 8  # of a batch
STALENESS = 7  # versions: eight batches' worth of groups may be out or ready
WARM_S = 1.0  # of each stretch, not looked at
SLOW_S = 0.02  # the slow tailer's pause after each record
PIPE_BYTES = 1 << 20
SILENT_S = 3.0  # a tailer that has heard nothing for so long has heard all
IN_PROCESS, OVER_RAY, OVER_GRPC = "in process", "Ray calls", "gRPC"


@dataclass(frozen=True, kw_only=True)
class Size:
    """How many of each kind, and seconds of each stretch."""

    in_process: int = 936
    ray: int = 64
    grpc: int = 4  # processes
    grpc_threads: int = 4  # producers in each of them
    alone_s: float = 12.0
    together_s: float = 40.0
    half_s: float = 25.0
    groups: int = GROUPS


def configure(size: Size) -> RunConfig:
    return RunConfig.model_validate(
        {
            "steps": 1 << 40,
            "max_staleness": STALENESS,
            "learner": {"groups_per_step": size.groups, "group_size": GROUP_SIZE},
            "rollout": {"lease_timeout_s": 3600.0},
            "store": {"reserve_mib": 0},
            "serving": {"enabled": True, "decisions": False},
        }
    )


class Ears(threading.Thread):
    """The oracle's end of the pipe: keeps what is said until it is asked for."""

    def __init__(self, pipe: Path) -> None:
        super().__init__(name="ears", daemon=True)
        os.mkfifo(pipe)
        self._fd = os.open(pipe, os.O_RDWR)  # its own writer, too: it never sees an end while others come and go
        fcntl.fcntl(self._fd, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        self._heard, self._stopped = bytearray(), threading.Event()

    def run(self) -> None:
        while select.select([self._fd], [], [], 0.1)[0] or not self._stopped.is_set():
            if select.select([self._fd], [], [], 0.0)[0]:
                self._heard += os.read(self._fd, PIPE_BYTES)

    def finish(self) -> Oracle:
        """Everybody has spoken: what was said."""
        self._stopped.set()
        self.join()
        os.close(self._fd)
        oracle = Oracle()
        for line in self._heard.decode().splitlines():
            oracle.hear(line)
        return oracle


class Child:
    """A process at the other end of gRPC (benchmarks/producers.py)."""

    def __init__(self, *words: str) -> None:
        command = [sys.executable, "-m", "benchmarks.producers", *words]
        self.process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    @property
    def pid(self) -> int:
        return self.process.pid

    def hear(self) -> str:
        """Its next line; empty where it is dead."""
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def ask(self, *, until: float, every_s: float) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{until} {every_s}\n")
        self.process.stdin.flush()

    def answer(self) -> Waits:
        line = self.hear()
        return Waits(**json.loads(line)) if line else Waits()

    def end(self) -> None:
        """Close its input and let it end by itself; a stopped one goes on first."""
        if self.process.poll() is None:
            self.process.send_signal(SIGCONT)
        self.process.communicate()


class Stage:
    """A store and all who use it; `close` ends them all."""

    def __init__(self, folder: Path, size: Size, resources: ExitStack) -> None:
        import ray  # after actors/, which sets what it reads at import

        config = configure(size)
        owner = StoreOwner.open(folder / "store", config=config, source=task_source(config), create=True)
        owner.close()
        self._ray, self._size, self._resources = ray, size, resources
        self._owner = start(
            LoadedStore, config, str(folder), str(owner.uuid), num_cpus=0, scheduling_strategy=on_this_node()
        )
        resources.callback(ray.kill, self._owner)
        self.pid = int(ray.get(self._owner.card.remote())["pid"])
        self.address = json.loads((folder / SERVING_FILE).read_text())["address"]
        self.ears = Ears(folder / "pipe")
        self.ears.start()
        np.zeros(1, dtype=np.int64).tofile(folder / "served")
        self.scene = Scene(
            uuid=str(owner.uuid),
            environment=config.environment_label,
            pipe=str(folder / "pipe"),
            served=str(folder / "served"),
            num_tokens=NUM_TOKENS,
        )
        site = Site(self.scene)
        site.tell("open", ray.get(self._owner.status.remote())["epoch"])
        self.learner = Learner(
            StoreClient(self._owner), site, num_groups=size.groups, max_staleness=config.max_staleness
        )
        hire = ray.remote(RayProducer).options(num_cpus=0)
        self._hands: list[Any] = [hire.remote(self.scene, self._owner, f"ray-{number}") for number in range(size.ray)]
        self._children = [self._start_producer(number) for number in range(size.grpc)]
        self.memory = Memory(self.pid)
        for number, pid in enumerate(ray.get([hand.pid.remote() for hand in self._hands])):
            self.memory.watch(f"ray-{number}", "a Ray producer", pid)
        self.learner.start()
        self.memory.start()

    def _start_producer(self, number: int) -> Child:
        words = json.dumps(asdict(self.scene)), self.address, f"grpc-{number}", str(self._size.grpc_threads)
        return self.start_child("produce", *words)

    def start_child(self, *words: str) -> Child:
        """Returns when it is ready."""
        child = Child(*words)
        self._resources.callback(child.end)
        if child.hear() != "ready\n":
            raise SystemExit(f"benchmarks.producers {' '.join(words)} did not start")
        return child

    def look(self) -> Look:
        names, status = self._ray.get([self._owner.name_threads.remote(), self._owner.status.remote()])
        return look(self.pid, names=names, status=status)

    def run(self, name: str, kinds: Sequence[str], *, seconds: float, every_s: float = 0.0,
            meanwhile: Callable[[float], object] = lambda until: None) -> dict[str, Any]:  # fmt: skip
        """A stretch of work by all producers of `kinds`; `meanwhile` runs beside it."""
        until = time.time() + WARM_S + seconds
        plan = {"until": until, "every_s": every_s}
        names = [f"in-process-{number}" for number in range(self._size.in_process)]
        local = [self._owner.produce.remote(self.scene, names=names, **plan)] if IN_PROCESS in kinds else []
        called = [hand.produce.remote(**plan) for hand in self._hands] if OVER_RAY in kinds else []
        for child in self._children if OVER_GRPC in kinds else ():
            child.ask(**plan)
        late = self._owner.measure_lateness.remote(until=until)
        with ThreadPoolExecutor(1) as beside:
            done = beside.submit(meanwhile, until)
            time.sleep(WARM_S)
            first = self.look()
            time.sleep(max(0.0, until - 0.2 - time.time()))
            last = self.look()
            waits = {IN_PROCESS: self._ray.get(local), OVER_RAY: self._ray.get(called), OVER_GRPC: []}
            done.result()
        waits[OVER_GRPC] = [child.answer() for child in self._children] if OVER_GRPC in kinds else []
        row: dict[str, Any] = {
            "name": name,
            "seconds": seconds,
            "kinds": {kind: summarise(waits[kind], seconds=seconds + WARM_S) for kind in kinds},
            **compare(first, last),
            "late_ms": quantiles(self._ray.get(late).tolist()),
            "lsns": [first.data_lsn, last.data_lsn],
        }
        return {**row, "bottleneck": name_bottleneck(row)}

    def restart_producer(self, number: int, **plan: float) -> None:
        """kill -9, and another of the same name."""
        self._children[number].process.send_signal(SIGKILL)
        self._children[number].process.wait()
        self._children[number] = self._start_producer(number)
        self._children[number].ask(**plan)

    def stall_producer(self, number: int, *, seconds: float) -> None:
        self._children[number].process.send_signal(SIGSTOP)
        time.sleep(seconds)
        self._children[number].process.send_signal(SIGCONT)

    def watch_children(self) -> None:
        for number, child in enumerate(self._children):
            self.memory.watch(f"grpc-{number}", "a gRPC producer", child.pid)

    def close(self) -> int:
        """End producers and store; where the data log ended."""
        self.learner.stop()
        self.memory.stop()
        end = int(self._ray.get(self._owner.status.remote())["data_lsn"])
        for child in self._children:
            child.end()
        self._ray.get(self._owner.stop.remote())
        for hand in self._hands:
            self._ray.kill(hand)
        return end


def quantiles(seconds: Sequence[float]) -> dict[str, float]:
    """In ms."""
    p50, p99, most = np.percentile(seconds or [0.0], [50, 99, 100]) * 1e3
    return {"p50": round(float(p50), 2), "p99": round(float(p99), 2), "most": round(float(most), 2)}


def summarise(waits: Sequence[Waits], *, seconds: float) -> dict[str, Any]:
    total = Waits()
    for one in waits:
        total.add(one)
    return {
        "records_per_s": round(len(total.append_s) / seconds, 1),
        "ack_ms": quantiles(total.append_s),
        "lease_ms": quantiles(total.lease_s),
    }


class Tailers:
    """Three that follow the data log from where it is: one keeps up, one is slow, one will be killed."""

    def __init__(self, stage: Stage, folder: Path, *, start: int) -> None:
        self.start = start
        self._files = {name: folder / f"{name}.heard" for name in ("tailer", "slow tailer", "killed tailer")}
        self._children = {}
        for name, file in self._files.items():
            pause_s = SLOW_S if name == "slow tailer" else 0.0
            child = stage.start_child("follow", stage.address, str(start), str(pause_s), str(file))
            stage.memory.watch(name, name, child.pid)
            self._children[name] = child

    def kill(self) -> None:
        self._children["killed tailer"].process.kill()

    def catch_up(self) -> None:
        """Until the first one hears nothing new for a while."""
        file, before, deadline = self._files["tailer"], -1, 0.0
        while (size := file.stat().st_size) != before or time.monotonic() < deadline:
            if size != before:
                before, deadline = size, time.monotonic() + SILENT_S
            time.sleep(0.2)

    def end(self) -> None:
        for child in self._children.values():
            child.end()

    def heard(self) -> dict[str, np.ndarray[Any, Any]]:
        found = {}
        for name, file in self._files.items():
            data = file.read_bytes()
            found[name] = np.frombuffer(data[: len(data) - len(data) % 8], dtype=np.int64)
        return found
