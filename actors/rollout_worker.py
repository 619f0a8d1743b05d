"""A rollout worker: its environments, its slots as threads, and the held-out evaluation."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import Lock, Thread
from typing import Any

from actors.measure import RolloutMeter
from actors.process import Process, group, refusing
from actors.tenants import tenant
from actors.transport import EngineClient, open_store
from buffers.owner import episode_id
from configs.schema import RunConfig
from contracts.records import Ack, Episode, Evaluation
from loops.rollout import Place, RolloutSlot
from telemetry.spans import span

log = logging.getLogger(__name__)


class RolloutWorkerActor(Process):
    """Acts through engine `rank mod engines`; every slot is a producer of its own."""

    @refusing
    def __init__(
        self, config: RunConfig, folder: str, uuid: str, rank: int, store: Any, engines: Sequence[Any]
    ) -> None:
        super().__init__(f"rollout-{rank}", config=config, folder=Path(folder))
        self._meter = RolloutMeter(self.metrics)
        self._config, self._uuid, self._rank = config, uuid, rank
        self._store = open_store(store, config.store.shards)
        engine = EngineClient(engines[rank % len(engines)])
        self._stage = tenant(config).open_stage(Path(folder), engine, rank=rank)
        log.info("environment ready")
        self._ears = AckLog(config.rollout.ack_log)
        self._failure: BaseException | None = None

    @group("main")
    def serve(self) -> None:
        """Rolls out until told to stop. Raises what a slot raised."""
        rollout = self._config.rollout
        num_slots = 1 if self._config.mode == "sync" else rollout.slots
        threads = [
            Thread(target=self._roll, args=(slot,), name=f"slot {slot}", daemon=True) for slot in range(num_slots)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self._stage.close()
        if self._failure is not None:
            raise self._failure

    def _roll(self, slot: int) -> None:
        try:
            RolloutSlot(
                self._store,
                player=self._stage.player(slot),
                store_uuid=self._uuid,
                place=Place(producer=f"{self.role}.{slot}", rank=self._rank, world=self._config.rollout.workers),
                episode_id=episode_id,
                hear=self._hear,
            ).run(self.stopping)
        except BaseException as error:  # noqa: BLE001 - a border: the thread's failure becomes the process's
            self._failure = error
            self.stopping.set()

    def _hear(self, episode: Episode, ack: Ack) -> None:
        self._ears.hear(episode, ack)
        self._meter.episode(episode)

    @group("data")
    def evaluate(self, version: int, step: int) -> Evaluation:
        with span("evaluate", track="evaluate", step=step):
            return self._stage.evaluate(version, step)

    @group("control")
    def status(self) -> Mapping[str, Any]:
        return self._stage.status()


class AckLog:
    """Writes each acknowledgement as it is heard to a file or a named pipe: `episode_id lsn` a line."""

    def __init__(self, path: str | None) -> None:
        self._file = None if path is None else os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self._lock = Lock()

    def hear(self, episode: Episode, ack: Ack) -> None:
        if self._file is not None:
            with self._lock:
                os.write(self._file, f"{episode.episode_id} {ack.lsn}\n".encode())
