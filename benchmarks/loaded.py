"""The two actors of benchmarks/store_load.py: a producer, and the store with producers in its own process."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from actors.process import group
from actors.store import StoreActor
from actors.transport import StoreClient
from benchmarks.producers import Scene, Site, Waits, produce
from contracts.records import FloatArray

PROBE_S = 0.005
RAY = "Ray"  # threads on which its calls run


class RayProducer:
    """A producer whose appends are Ray calls."""

    def __init__(self, scene: Scene, actor: Any, name: str) -> None:
        self._site, self._store, self._name = Site(scene), StoreClient(actor), name

    def pid(self) -> int:
        return os.getpid()

    def produce(self, *, until: float, every_s: float) -> Waits:
        return produce(self._store, self._site, names=[self._name], until=until, every_s=every_s)


class LoadedStore(StoreActor):
    """Says what its threads are, and how late they run."""

    @group("main")
    def produce(self, scene: Scene, *, names: Sequence[str], until: float, every_s: float) -> Waits:
        return produce(self._owner, Site(scene), names=names, until=until, every_s=every_s)

    @group("control")
    def name_threads(self) -> dict[int, str]:
        """Python's threads by their native ids."""
        mine = threading.main_thread(), threading.current_thread()
        return {
            thread.native_id: RAY if thread in mine or thread.name.startswith("Dummy") else thread.name
            for thread in threading.enumerate()
            if thread.native_id is not None
        }

    @group("control")
    def measure_lateness(self, *, until: float) -> FloatArray:
        return measure_lateness(until=until)


def measure_lateness(*, until: float) -> FloatArray:
    """How long after its time a thread that sleeps goes on, s: it waits for a processor, and for the interpreter."""
    late = []
    while time.time() < until:
        asked = time.perf_counter()
        time.sleep(PROBE_S)
        late.append(time.perf_counter() - asked - PROBE_S)
    return np.array(late, dtype=np.float32)
