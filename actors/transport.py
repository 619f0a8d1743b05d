"""The other end of the actors' calls: clients that implement the ports of contracts/ over Ray handles.

Every `get` has a deadline. Weights go once into the object store and are read from there by all engines of a node.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import ray

from buffers.sharding import ShardedStore
from contracts.errors import StoreUnreachableError
from contracts.protocols import BatchRequest, InFlight, Store, WeightSet
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

CALL_S = 60.0  # a store call is a few milliseconds; an fsync on a disk in trouble can take many seconds
SHARD_S = 5.0  # one of several shards is lost after this long; what it was asked may have been done
GRACE_S = 30.0  # beyond an engine's own deadline

T = TypeVar("T")


def wait_for(ref: Any, *, timeout_s: float) -> Any:
    """The call's result. Raises what it raised (our own errors as themselves), or GetTimeoutError."""
    try:
        return ray.get(ref, timeout=timeout_s)
    except ray.exceptions.RayTaskError as error:
        raise error.cause if isinstance(error.cause, Exception) else error from None


class StoreClient:
    """contracts.protocols.Store by calls to the owner."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def _call(self, method: str, *given: Any, waits_s: float = 0.0, **named: Any) -> Any:
        return wait_for(getattr(self._actor, method).remote(*given, **named), timeout_s=CALL_S + waits_s)

    def attach(self, producer: str) -> int:
        return int(self._call("attach", producer))

    def lease(
        self, producer: str, epoch: int, *, max_tasks: int, rank: int = 0, world: int = 1, wait_s: float = 0.0
    ) -> list[Lease]:
        asked = {"max_tasks": max_tasks, "rank": rank, "world": world, "wait_s": wait_s}
        leases: list[Lease] = self._call("lease", producer, epoch, waits_s=wait_s, **asked)
        return leases

    def append(self, episodes: Sequence[Episode]) -> list[Ack]:
        acks: list[Ack] = self._call("append", episodes)
        return acks

    def open_session(self, record: ControlRecord) -> int:
        return int(self._call("open_session", record))

    def append_batch(self, request: BatchRequest, *, wait_s: float = 0.0) -> tuple[int, Batch] | None:
        batch: tuple[int, Batch] | None = self._call("append_batch", request, waits_s=wait_s, wait_s=wait_s)
        return batch

    def read(self, lsns: Sequence[int]) -> list[Episode]:
        episodes: list[Episode] = self._call("read", lsns)
        return episodes

    def decide(self, record: Decision, session: int) -> int:
        return int(self._call("decide", record, session))

    def decisions(self, *, start: int = 0, kinds: Sequence[Kind] = ()) -> list[tuple[int, ControlRecord]]:
        records: list[tuple[int, ControlRecord]] = self._call("decisions", start=start, kinds=kinds)
        return records

    def ledger(self) -> Ledger:
        ledger: Ledger = self._call("ledger")
        return ledger


class ShardClient(StoreClient):
    """contracts.shards.Shard by calls to its owner, whichever process that is now: shard 0's owner knows (`find`)."""

    def __init__(self, first: Any, shard: int) -> None:
        super().__init__(None if shard else first)
        self._first, self._shard = first, shard
        # Nothing goes on without shard 0: it has the time that a store of its own would have.
        self._timeout_s = SHARD_S if shard else CALL_S

    def _call(self, method: str, *given: Any, waits_s: float = 0.0, **named: Any) -> Any:
        try:
            if self._actor is None:
                self._actor = wait_for(self._first.find.remote(self._shard), timeout_s=CALL_S)
            return wait_for(getattr(self._actor, method).remote(*given, **named), timeout_s=self._timeout_s + waits_s)
        except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError) as error:
            self._actor = None if self._shard else self._first
            raise StoreUnreachableError(f"its owner does not answer: {type(error).__name__}") from error

    def append_feedback(self, feedback: Feedback) -> int:
        return int(self._call("append_feedback", feedback))

    def hold(self, record: Hold) -> bool:
        return bool(self._call("hold", record))

    def review(self, record: Review) -> bool:
        return bool(self._call("review", record))

    def check(self, producer: str, epoch: int) -> None:
        self._call("check", producer, epoch)

    def join(self, producer: str, epoch: int) -> None:
        self._call("join", producer, epoch)

    def follow(self, news: News) -> Standing:
        standing: Standing = self._call("follow", news)
        return standing

    def offer(self, request: BatchRequest) -> Offer:
        offer: Offer = self._call("offer", request)
        return offer

    def release(self, dropped: Sequence[Dropped]) -> None:
        self._call("release", dropped)

    def find_batch(self, request: BatchRequest) -> tuple[int, Batch] | None:
        batch: tuple[int, Batch] | None = self._call("find_batch", request)
        return batch

    def commit(self, batch: Batch, session: int) -> tuple[int, Batch]:
        cut: tuple[int, Batch] = self._call("commit", batch, session)
        return cut


def open_shards(first: Any, num_shards: int) -> ShardedStore:
    """The store of which `first` owns shard 0."""
    return ShardedStore([ShardClient(first, shard) for shard in range(num_shards)])


def open_store(first: Any, num_shards: int) -> Store:
    """`first`: the handle of the owner, or of shard 0's."""
    return StoreClient(first) if num_shards == 1 else open_shards(first, num_shards)


class EngineClient:
    """The part of contracts.protocols.InferenceEngine that rollouts use."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def generate(self, requests: Sequence[Any], *, timeout_s: float, guard: bool = False) -> list[Any]:
        call = self._actor.generate.remote(requests, timeout_s=timeout_s, guard=guard)
        answers: list[Any] = wait_for(call, timeout_s=timeout_s + GRACE_S)
        return answers


class EngineFleet:
    """contracts.protocols.Fleet: all engines at once."""

    def __init__(self, actors: Sequence[Any], *, timeout_s: float) -> None:
        self._actors, self._timeout_s = list(actors), timeout_s + GRACE_S

    def pause(self, in_flight: InFlight) -> None:
        wait_for([actor.pause.remote(in_flight) for actor in self._actors], timeout_s=self._timeout_s)

    def push(self, weights: WeightSet) -> None:
        ref = ray.put(weights)
        wait_for([actor.push.remote(ref) for actor in self._actors], timeout_s=self._timeout_s)

    def probe(self, requests: Sequence[Any]) -> list[list[Any]]:
        calls = [actor.probe.remote(requests) for actor in self._actors]
        answers: list[list[Any]] = wait_for(calls, timeout_s=self._timeout_s)
        return answers

    def sleep(self) -> None:
        wait_for([actor.sleep.remote() for actor in self._actors], timeout_s=self._timeout_s)

    def wake(self) -> None:
        wait_for([actor.wake.remote() for actor in self._actors], timeout_s=self._timeout_s)

    def resume(self) -> None:
        wait_for([actor.resume.remote() for actor in self._actors], timeout_s=self._timeout_s)
