"""The update worker: the learner, its protocol loop, and the publisher that pushes what it learned to the engines."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from actors.measure import UpdateMeter, learner_works
from actors.process import Process, group, refusing
from actors.tenants import tenant
from actors.transport import EngineFleet, open_store, wait_for
from configs.loader import config_hash
from configs.schema import RunConfig
from contracts.protocols import WeightSet
from contracts.records import Evaluation, Guard, Served, Session
from loops.publish import Publisher
from loops.update import Progress, UpdateLoop, UpdatePorts
from telemetry.logs import JsonLines

EVALUATION_S = 600.0
log = logging.getLogger(__name__)


class UpdateWorkerActor(Process):
    """Wires one learner; `serve` is the run's main line."""

    @refusing
    def __init__(self, config: RunConfig, folder: str, store: Any, engines: Sequence[Any], evaluator: Any) -> None:
        self._folder, self._config = Path(folder), config
        super().__init__(
            "update-0", config=config, folder=self._folder, threads=config.learner.threads, working=learner_works
        )
        self._meter = UpdateMeter(self.metrics, steps=config.steps)
        self._lines = JsonLines(self._folder / "metrics.jsonl")
        self._progress = Progress(step=0, version=-1, phase="starting")
        self._reward: float | None = None
        self._step_times: list[float] = []
        self._store, self._engines, self._evaluator = store, engines, evaluator

    @group("main")
    def serve(self) -> int:
        """Recover, then learn until the steps are done or `stop`. Returns the step it stands at."""
        from models.registry import save_version  # torch is loaded here, after OMP_NUM_THREADS was set

        config, folder = self._config, self._folder
        kind = tenant(config)
        learner = kind.build_learner(folder)
        log.info("learner ready")
        fleet = EngineFleet(self._engines, timeout_s=config.engine.timeout_s)
        ports = UpdatePorts(
            store=open_store(self._store, config.store.shards),
            learner=learner,
            publisher=MeasuredPublisher(kind.build_publisher(learner, fleet), self._meter),
            prepare=lambda: kind.prepare(learner, folder, self._on_warm_start),
            save_version=partial(save_version, folder / "versions"),
            prune=self._prune,
            evaluate=self._evaluate,
            beside=ThreadPoolExecutor(1, thread_name_prefix="publish"),
            on_step=self._on_step,
        )
        if config.cluster.mode == "colocated":
            ports = replace(ports, sleep=fleet.sleep, wake=partial(self._give_way, fleet))
        session = Session(
            role="learner",
            epoch=0,
            config_hash=config_hash(config),
            base_weights=learner.base_hash,
            fingerprint=dict(learner.fingerprint()),
            wall_time=time.time(),
        )
        loop = UpdateLoop(ports, config=config, folder=folder, session=session)
        loop.recover()
        loop.run(self.stopping)
        return loop.step

    def _give_way(self, fleet: EngineFleet) -> None:
        """The turn of the engine on the learner's device."""
        if self._config.learner.device == "cuda":
            import torch

            torch.cuda.empty_cache()  # what torch kept of the step (not run)
        fleet.wake()

    def _evaluate(self, version: int, step: int) -> Evaluation:
        evaluation: Evaluation = wait_for(self._evaluator.evaluate.remote(version, step), timeout_s=EVALUATION_S)
        return evaluation

    def _on_warm_start(self, step: int, loss: float) -> None:
        self._progress = Progress(step=0, version=-1, phase="warm_start", stats={"warm_start_step": step, "loss": loss})

    def _on_step(self, progress: Progress) -> None:
        self._meter.step(progress)
        self._progress = progress
        line: dict[str, Any] = {
            "time": time.time(),
            "phase": progress.phase,
            "step": progress.step,
            "version": progress.version,
            "staleness": progress.staleness,
            **progress.stats,
            **{f"{part}_s": seconds for part, seconds in progress.seconds.items()},
        }
        if progress.evaluation is not None:
            line.update(progress.evaluation.scores, metric=progress.evaluation.metric)
        self._lines.append(line)
        if progress.phase == "step":
            self._reward = progress.stats.get("reward_mean")
            self._step_times = [*self._step_times[-19:], time.monotonic()]

    def _prune(self) -> None:
        """Keep genesis, the newest checkpoints, and the newest version's file."""
        checkpoints = sorted((self._folder / "checkpoints").iterdir())
        for folder in checkpoints[1 : -self._config.checkpoint.keep]:
            shutil.rmtree(folder)
        for folder in sorted((self._folder / "versions").iterdir())[: -self._config.checkpoint.keep]:
            shutil.rmtree(folder)

    @group("control")
    def status(self) -> Mapping[str, Any]:
        progress, times = self._progress, self._step_times
        step_s = (times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else None
        return {
            "phase": progress.phase,
            "step": progress.step,
            "version": progress.version,
            "staleness": progress.staleness,
            "reward": self._reward,
            "step_s": step_s,
            "warm_start_step": progress.stats.get("warm_start_step"),
            "idle": self.idle(),
        }


class MeasuredPublisher:
    """A publisher whose pushes and refusals are counted."""

    def __init__(self, publisher: Publisher[Any, Any], meter: UpdateMeter) -> None:
        self._publisher, self._meter = publisher, meter

    def publish(self, weights: WeightSet) -> Served | Guard:
        outcome = self._publisher.publish(weights)
        self._meter.push(outcome, self._publisher.last_push_s)
        return outcome
