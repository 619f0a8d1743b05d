"""An inference engine as an actor, whichever the configuration names."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from actors.measure import EngineMeter, engine_works
from actors.process import Process, group, refusing
from actors.tenants import tenant
from configs.schema import RunConfig
from contracts.protocols import InFlight, WeightSet
from telemetry import spans

log = logging.getLogger(__name__)


class EngineActor(Process):
    """contracts.protocols.InferenceEngine over Ray calls: what requests and answers are, only the engine knows."""

    @refusing
    def __init__(self, config: RunConfig, folder: str, rank: int) -> None:
        super().__init__(
            f"engine-{rank}", config=config, folder=Path(folder), threads=config.engine.threads, working=engine_works
        )
        self._measure = EngineMeter(self.metrics)
        self._timeout_s = config.engine.timeout_s
        self._in_flight = InFlight(config.engine.in_flight)
        self._engine = tenant(config).build_engine(Path(folder) / "model")
        self._end_hold: dict[str, Callable[[], None]] = {}  # of the spans in which it may not generate
        if config.cluster.mode == "colocated":  # the first turn is the update worker's
            self._engine.sleep(timeout_s=self._timeout_s)
            self._hold("asleep")
        log.info("engine ready")

    @group("data")
    def generate(self, requests: Sequence[Any], *, timeout_s: float, guard: bool = False) -> list[Any]:
        with spans.span("generate", track="generate", requests=len(requests)):
            return self._engine.generate(requests, timeout_s=timeout_s, guard=guard)

    @group("publish")
    def pause(self, in_flight: InFlight) -> None:
        with spans.span("pause", track="publish"):
            self._engine.pause(in_flight, timeout_s=self._timeout_s)
        self._hold("paused")

    @group("publish")
    def push(self, weights: WeightSet) -> None:
        with spans.span("push", track="publish", version=weights.version):
            self._engine.push(weights)

    @group("publish")
    def probe(self, requests: Sequence[Any]) -> list[Any]:
        with spans.span("probe", track="publish"):
            return self._engine.generate(requests, timeout_s=self._timeout_s, guard=True)

    @group("publish")
    def resume(self) -> None:
        self._engine.resume()
        self._release("paused")

    @group("publish")
    def sleep(self) -> None:
        with spans.span("sleep", track="publish"):
            self._engine.sleep(timeout_s=self._timeout_s)
        self._hold("asleep")

    @group("publish")
    def wake(self) -> None:
        with spans.span("wake", track="publish"):
            self._engine.wake()
        self._release("asleep")

    def _hold(self, name: str) -> None:
        if name not in self._end_hold:
            self._end_hold[name] = spans.begin(name, track="held")

    def _release(self, name: str) -> None:
        end = self._end_hold.pop(name, None)
        if end is not None:
            end()

    @group("control")
    def status(self) -> Mapping[str, Any]:
        stats = {**self._engine.stats(), "version": float(self._engine.version)}
        self._measure(stats)
        return {**stats, "idle": self.idle()}

    @group("control")
    def stop(self) -> None:
        self._engine.close()
        self.stopping.set()
