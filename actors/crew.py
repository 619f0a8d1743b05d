"""All processes of one run: hired in the order in which they are needed, met, and dismissed. The place that wires."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray

from actors.engine import EngineActor
from actors.placement import Units, refuse_homeless, reserve
from actors.process import start
from actors.rollout_worker import RolloutWorkerActor
from actors.shards import restart_shard, start_shards
from actors.transport import StoreClient
from actors.update_worker import UpdateWorkerActor
from buffers.addresses import name_shard
from configs.schema import SERVING_TOKEN, RunConfig
from contracts.errors import RatchetError
from contracts.records import Batch, Failure, Session, Skip, Version

SHARD = "store-"  # roles that begin so are replaced when they die; any other death ends the run
LAST_CALL_S = 10.0  # how long a process may take to stop when it is told to
log = logging.getLogger(__name__)


class Crew:
    """The actors of a run by role: store, store-N (further shards), engine-N, rollout-N, update-0."""

    def __init__(self, units: Units, actors: Mapping[str, Any]) -> None:
        self._units, self._actors = units, dict(actors)
        self._introductions = {actor.card.remote(): role for role, actor in self._actors.items()}
        self.cards: dict[str, Mapping[str, Any]] = {}

    @classmethod
    def hire(cls, config: RunConfig, *, folder: Path, uuid: str) -> Crew:
        """Raises PlacementError; a process that fails to start shows in `Watch.look`."""
        refuse_homeless(config)
        units = reserve(config)
        where = str(folder)
        token = os.environ.get(SERVING_TOKEN)
        owners = start_shards(config=config, folder=folder, uuid=uuid, token=token)
        store = owners[0]
        engines = [
            start(EngineActor, config, where, rank, **units.seat(f"engine-{rank}"))
            for rank in range(config.engine.count)
        ]
        workers = [
            start(RolloutWorkerActor, config, where, uuid, rank, store, engines, **units.seat(f"rollout-{rank}"))
            for rank in range(config.rollout.workers)
        ]
        update = start(UpdateWorkerActor, config, where, store, engines, workers[0], **units.seat("update-0"))
        return cls(
            units,
            {
                **{name_shard(shard): owner for shard, owner in enumerate(owners)},
                **{f"engine-{rank}": engine for rank, engine in enumerate(engines)},
                **{f"rollout-{rank}": worker for rank, worker in enumerate(workers)},
                "update-0": update,
            },
        )

    def roles(self) -> Mapping[str, Any]:
        return self._actors

    def rehire(self, role: str, *, config: RunConfig, folder: Path, uuid: str) -> bool:
        """Start a lost shard's owner again, if the node with its disk is there."""
        shard = int(role.removeprefix(SHARD))
        owner = restart_shard(shard, self._actors["store"], config=config, folder=folder, uuid=uuid)
        if owner is not None:
            self._actors[role] = owner
            self._introductions[owner.card.remote()] = role
            self.cards.pop(role, None)
        return owner is not None

    def meet(self, *, timeout_s: float) -> bool:
        """Whether every process has said who and where it is (`cards`)."""
        pending = list(self._introductions)
        done, _ = ray.wait(pending, num_returns=len(pending), timeout=timeout_s) if pending else ([], [])
        for ref in done:
            role = self._introductions.pop(ref)
            try:
                self.cards[role] = ray.get(ref)
            except ray.exceptions.RayError as error:  # its `serve` call says the same, and ends the run
                log.warning("a process did not start", extra={"of": role, "detail": str(error)})
        return len(self.cards) == len(self._actors)

    def drain(self) -> None:
        """Ask the update worker to finish its step and write a checkpoint."""
        self._actors["update-0"].stop.remote()

    def note_death(self, role: str, reason: str) -> None:
        """Write down who died and, for the learner, over which batch: one that kills it twice is skipped."""
        if role == "store":
            return
        store = StoreClient(self._actors["store"])
        try:
            session = store.open_session(Session(role="supervisor", epoch=0, wall_time=time.time()))
            batch_lsn = open_batch(store) if role.startswith("update") else -1
            store.decide(Failure(role=role, detail=reason, batch_lsn=batch_lsn), session)
        except (RatchetError, ray.exceptions.RayError) as error:
            log.warning("the death could not be written to the log", extra={"of": role, "detail": str(error)})

    def dismiss(self) -> None:
        """Stop every process, the store last, within two deadlines; then kill what is left."""
        for roles in ([role for role in self._actors if role != "store"], ["store"]):
            calls = {self._actors[role].stop.remote(): role for role in roles}
            _, stuck = ray.wait(list(calls), num_returns=len(calls), timeout=LAST_CALL_S)
            for call in stuck:
                log.info("did not stop by itself", extra={"of": calls[call]})
        for actor in self._actors.values():
            ray.kill(actor)
        self._units.release()


def open_batch(store: StoreClient) -> int:
    """LSN of the batch that was cut and has neither version nor skip; -1: none, or no learner has begun since."""
    batches: set[int] = set()
    begun = False  # a learner that dies before its session, while it starts, did not die of a batch
    for lsn, record in store.decisions():
        if isinstance(record, Session) and record.role in ("owner", "learner"):
            begun = record.role == "learner"
        elif isinstance(record, Batch):
            batches.add(lsn)
        elif isinstance(record, Version | Skip):
            batches.discard(record.batch_lsn)
    return max(batches, default=-1) if begun else -1
