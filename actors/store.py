"""An experience store's owner as an actor: one a run or, of several shards, one a shard, each where its disk is."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any
from uuid import UUID

from actors.measure import StoreMeter
from actors.process import Process, group, reachable, refusing
from buffers.addresses import name_shard, shard_uuid
from buffers.archive import archive, read_archived
from buffers.log.files import write_durably
from buffers.log.identity import create_store
from buffers.owner import StoreOwner
from buffers.reading import Records
from configs.schema import RunConfig
from contracts.errors import RatchetError, StoreUnreachableError
from contracts.protocols import BatchRequest
from contracts.records import (
    Ack,
    Batch,
    ControlRecord,
    Decision,
    Dropped,
    Episode,
    Feedback,
    Hold,
    Kind,
    Lease,
    Ledger,
    Review,
)
from contracts.shards import News, Offer, Standing
from loops.tasks import task_source

if TYPE_CHECKING:
    from serving.server import StoreServer

log = logging.getLogger(__name__)
SERVING_FILE = "serving.json"  # in the run's folder while the store is served over gRPC: where


class StoreActor(Process):
    """contracts.protocols.Store over Ray calls and, where it is configured, over gRPC. Every call may be retried.

    `token`: what callers over gRPC must show. `shard`: contracts.shards.Shard too; all but shard 0 make their folder.
    """

    @refusing
    def __init__(self, config: RunConfig, folder: str, uuid: str, token: str | None = None, shard: int = 0) -> None:
        super().__init__(name_shard(shard), config=config, folder=Path(folder))
        self._measure = StoreMeter(self.metrics)
        self._folder = Path(folder)
        self._owners: dict[int, Any] = {}  # further shard → its owner's handle
        store, found = Path(folder) / name_shard(shard), UUID(uuid)
        if shard:
            found = shard_uuid(found, shard)
            if not (store / "store.json").exists():
                create_store(store, uuid=found)
        self._owner = StoreOwner.open(
            store, uuid=found, config=config, source=task_source(config, shard=shard), take_over=True
        )
        self._address_file = Path(folder) / SERVING_FILE
        self._address_file.unlink(missing_ok=True)
        self._server = self._open_server(config, Path(folder) / "store", token) if config.serving.enabled else None
        if config.archive.uri is not None:
            archiving = (config.archive.uri, config.archive.every_s)
            Thread(target=self._archive, args=archiving, name="archive", daemon=True).start()
        if config.store.retention.is_bounded:
            Thread(target=self._trim, args=(config.store.retention.every_s,), name="retention", daemon=True).start()

    def _open_server(self, config: RunConfig, folder: Path, token: str | None) -> StoreServer:
        from serving.exposure import join_address
        from serving.server import StoreServer

        server = StoreServer(
            self._owner,
            records=Records(folder, uuid=self._owner.uuid),
            settings=config.serving,
            token=token,
            metrics=self.metrics,
        )
        where = {"address": join_address(reachable(server.host), server.port), "tls": server.is_secure}
        write_durably(self._address_file, (json.dumps(where) + "\n").encode())
        return server

    def _trim(self, every_s: float) -> None:
        while not self.stopping.wait(every_s):
            try:
                done = self._owner.trim()
            except (RatchetError, OSError) as error:
                log.error("nothing was trimmed", extra={"detail": repr(error)})
                continue
            if done is not None:
                log.info("trimmed", extra={"detail": f"{done.num_segments} segments by {done.reason}"})

    def _archive(self, uri: str, every_s: float) -> None:
        """Again and again, on a thread of its own. A place that does not answer costs nothing but the metric."""
        while not self.stopping.wait(every_s):
            try:
                done = archive(self._folder, uri)
                log.info("archived", extra={"detail": f"{done.num_sent} objects, {done.num_bytes} bytes to {uri}"})
            except (RatchetError, OSError) as error:
                log.error("the archive was not brought up to date", extra={"detail": repr(error)})

    @group("data")
    def attach(self, producer: str) -> int:
        return self._owner.attach(producer)

    @group("data")
    def lease(
        self, producer: str, epoch: int, *, max_tasks: int, rank: int = 0, world: int = 1, wait_s: float = 0.0
    ) -> list[Lease]:
        return self._owner.lease(producer, epoch, max_tasks=max_tasks, rank=rank, world=world, wait_s=wait_s)

    @group("data")
    def append(self, episodes: Sequence[Episode]) -> list[Ack]:
        return self._owner.append(episodes)

    @group("data")
    def append_feedback(self, feedback: Feedback) -> int:
        return self._owner.append_feedback(feedback)

    @group("data")
    def hold(self, record: Hold) -> bool:
        return self._owner.hold(record)

    @group("data")
    def review(self, record: Review) -> bool:
        return self._owner.review(record)

    @group("data")
    def open_session(self, record: ControlRecord) -> int:
        return self._owner.open_session(record)

    @group("data")
    def append_batch(self, request: BatchRequest, *, wait_s: float = 0.0) -> tuple[int, Batch] | None:
        return self._owner.append_batch(request, wait_s=wait_s)

    @group("data")
    def read(self, lsns: Sequence[int]) -> list[Episode]:
        return self._owner.read(lsns)

    @group("data")
    def decide(self, record: Decision, session: int) -> int:
        return self._owner.decide(record, session)

    @group("data")
    def decisions(self, *, start: int = 0, kinds: Sequence[Kind] = ()) -> list[tuple[int, ControlRecord]]:
        return self._owner.decisions(start=start, kinds=kinds)

    @group("control")
    def place(self, shard: int, owner: Any) -> None:
        """Shard 0: this actor owns `shard` from now on."""
        self._owners[shard] = owner

    @group("control")
    def find(self, shard: int) -> Any:
        """Shard 0: the actor that owns `shard`, or did last."""
        if shard not in self._owners:
            raise StoreUnreachableError(f"shard {shard} has no owner yet")
        return self._owners[shard]

    @group("data")
    def check(self, producer: str, epoch: int) -> None:
        self._owner.check(producer, epoch)

    @group("data")
    def join(self, producer: str, epoch: int) -> None:
        self._owner.join(producer, epoch)

    @group("data")
    def follow(self, news: News) -> Standing:
        return self._owner.follow(news)

    @group("data")
    def offer(self, request: BatchRequest) -> Offer:
        return self._owner.offer(request)

    @group("data")
    def release(self, dropped: Sequence[Dropped]) -> None:
        self._owner.release(dropped)

    @group("data")
    def find_batch(self, request: BatchRequest) -> tuple[int, Batch] | None:
        return self._owner.find_batch(request)

    @group("data")
    def commit(self, batch: Batch, session: int) -> tuple[int, Batch]:
        return self._owner.commit(batch, session)

    @group("control")
    def ledger(self) -> Ledger:
        return self._owner.ledger()

    @group("control")
    def status(self) -> Mapping[str, Any]:
        status, ledger = self._owner.status(), self._owner.ledger()
        self._measure(status, ledger, read_archived(self._folder / self.role))
        return {**status, "episodes": ledger.episodes, "ready": ledger.ready}

    @group("control")
    def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            self._address_file.unlink(missing_ok=True)
        self._owner.close()
        self.stopping.set()
