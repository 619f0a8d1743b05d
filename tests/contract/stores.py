"""Stores of every kind over one folder each, and a producer and a learner that tests drive by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from buffers.owner import StoreOwner, episode_id
from buffers.reading import Records
from buffers.sharding import ShardedStore
from configs.schema import RunConfig, Serving
from contracts.protocols import BatchRequest, Store
from contracts.records import Ack, Batch, Episode, Lease, Purpose, Served, Session, Span, StopReason, Version
from loops.tasks import task_source
from serving.client import RemoteStore, connect
from serving.server import StoreServer
from telemetry.exporter import Exporter
from tests.unit.buffers.bench import GROUPS_PER_STEP, make_step, small_config

TOKEN = "a secret of the tests"
SERVING = Serving(enabled=True, decisions=True, max_message_mib=4, credit_mib=4, max_streams=8)


@dataclass(frozen=True)
class Opened:
    """A store that was opened, and the identity of what it is."""

    store: Store
    uuid: str


Open = Callable[[Path, RunConfig], Any]  # a context manager of Opened; the folder is the run's


@contextmanager
def in_process(folder: Path, config: RunConfig) -> Iterator[Opened]:
    is_new = not (folder / "store" / "store.json").exists()
    owner = StoreOwner.open(folder / "store", config=config, source=task_source(config), create=is_new)
    try:
        yield Opened(owner, str(owner.uuid))
    finally:
        owner.close()


@contextmanager
def sharded(folder: Path, config: RunConfig) -> Iterator[Opened]:
    """Three owners in this process."""
    with ExitStack() as owners:
        shards = [
            owners.enter_context(in_process(folder if number == 0 else folder / f"shard-{number}", config))
            for number in range(3)
        ]
        yield Opened(ShardedStore([cast(StoreOwner, shard.store) for shard in shards]), shards[0].uuid)


@contextmanager
def over_ray(folder: Path, config: RunConfig) -> Iterator[Opened]:
    """A cluster must be up. Imported here: processes that need no Ray start in a moment."""
    import ray

    from actors.process import on_this_node, start
    from actors.store import StoreActor
    from actors.transport import StoreClient

    with in_process(folder, config) as made:
        uuid = made.uuid
    actor = start(StoreActor, config, str(folder), uuid, num_cpus=0, scheduling_strategy=on_this_node())
    try:
        yield Opened(StoreClient(actor), uuid)
        ray.get(actor.stop.remote(), timeout=30)
    finally:
        ray.kill(actor)


@contextmanager
def served(folder: Path, config: RunConfig, *, settings: Serving = SERVING, token: str | None = TOKEN) -> Iterator[Any]:
    """(server, owner) of the store in a run's folder."""
    with in_process(folder, config) as opened:
        owner = opened.store
        assert isinstance(owner, StoreOwner)
        metrics = Exporter("store", "test")
        records = Records(folder / "store", uuid=owner.uuid)
        server = StoreServer(owner, records=records, settings=settings, token=token, metrics=metrics)
        try:
            yield server, owner
        finally:
            server.close()


@contextmanager
def over_grpc(folder: Path, config: RunConfig) -> Iterator[Opened]:
    with served(folder, config) as (server, owner), connect(server.address, token=TOKEN, timeout_s=30) as store:
        yield Opened(store, str(owner.uuid))


class Driver:
    """One producer and one learner session of a store."""

    def __init__(self, opened: Opened, *, producer: str = "rollout-0") -> None:
        self.store, self.uuid, self.producer = opened.store, opened.uuid, producer
        self.epoch = self.store.attach(producer)
        self.session = self.store.open_session(Session(role="learner", epoch=0))
        self.seq = 0

    def serve(self, number: int, *, step: int = 0, batch_lsn: int = -1) -> None:
        """VERSION and SERVED."""
        version = Version(
            version=number, parent=number - 1, branch=0, step=step, root_hash=f"hash-{number}", batch_lsn=batch_lsn
        )
        self.store.decide(version, self.session)
        self.store.decide(Served(version=number, gap=0.0), self.session)

    def lease(self, max_tasks: int = 100) -> list[Lease]:
        return self.store.lease(self.producer, self.epoch, max_tasks=max_tasks)

    def make(self, lease: Lease, member: int, **changes: Any) -> Episode:
        """A valid episode of 3 tokens by version 0."""
        self.seq += 1
        episode = Episode(
            episode_id=episode_id(self.uuid, lease.lsn, member),
            lease=lease.lsn,
            member=member,
            task_id=lease.task.task_id,
            environment=small_config().environment_label,
            environment_version="1",
            purpose=Purpose.TRAIN,
            steps=(make_step(),),
            spans=(Span(start=0, version=0),),
            stop_reason=StopReason.TERMINATED,
            reward=float(member),
            producer=self.producer,
            producer_epoch=self.epoch,
            seq=self.seq,
        )
        return replace(episode, **changes)

    def play(self, leases: Sequence[Lease]) -> list[Ack]:
        """Append every missing member of `leases` in one call."""
        return self.store.append([self.make(lease, member) for lease in leases for member in lease.missing])

    def request(self, step: int, *, parent_version: int = 0) -> BatchRequest:
        return BatchRequest(
            session=self.session,
            branch=0,
            step=step,
            parent_version=parent_version,
            num_groups=GROUPS_PER_STEP,
            max_staleness=1,
            seed=7,
            coefficients={"kl": 0.5},
        )

    def cut(self, step: int) -> tuple[int, Batch]:
        cut = self.store.append_batch(self.request(step))
        assert cut is not None
        return cut


def open_remote(server: StoreServer, *, token: str | None = TOKEN, timeout_s: float = 30.0) -> RemoteStore:
    return connect(server.address, token=token, timeout_s=timeout_s)


__all__ = [
    "SERVING",
    "TOKEN",
    "Driver",
    "Open",
    "Opened",
    "in_process",
    "open_remote",
    "over_grpc",
    "over_ray",
    "served",
    "sharded",
    "small_config",
]
