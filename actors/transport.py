"""The other end of the actors' calls: clients that implement the ports of contracts/ over Ray handles.

Every `get` has a deadline. Weights go once into the object store and are read from there by all engines of a node.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import ray

from contracts.protocols import BatchRequest, InFlight, WeightSet
from contracts.records import Ack, Batch, ControlRecord, Decision, Episode, Kind, Lease, Ledger

CALL_S = 60.0  # a store call is a few milliseconds; an fsync on a disk in trouble can take many seconds
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

    def attach(self, producer: str) -> int:
        return int(wait_for(self._actor.attach.remote(producer), timeout_s=CALL_S))

    def lease(
        self, producer: str, epoch: int, *, max_tasks: int, rank: int = 0, world: int = 1, wait_s: float = 0.0
    ) -> list[Lease]:
        call = self._actor.lease.remote(producer, epoch, max_tasks=max_tasks, rank=rank, world=world, wait_s=wait_s)
        leases: list[Lease] = wait_for(call, timeout_s=CALL_S + wait_s)
        return leases

    def append(self, episodes: Sequence[Episode]) -> list[Ack]:
        acks: list[Ack] = wait_for(self._actor.append.remote(episodes), timeout_s=CALL_S)
        return acks

    def open_session(self, record: ControlRecord) -> int:
        return int(wait_for(self._actor.open_session.remote(record), timeout_s=CALL_S))

    def append_batch(self, request: BatchRequest, *, wait_s: float = 0.0) -> tuple[int, Batch] | None:
        call = self._actor.append_batch.remote(request, wait_s=wait_s)
        batch: tuple[int, Batch] | None = wait_for(call, timeout_s=CALL_S + wait_s)
        return batch

    def read(self, lsns: Sequence[int]) -> list[Episode]:
        episodes: list[Episode] = wait_for(self._actor.read.remote(lsns), timeout_s=CALL_S)
        return episodes

    def decide(self, record: Decision, session: int) -> int:
        return int(wait_for(self._actor.decide.remote(record, session), timeout_s=CALL_S))

    def decisions(self, *, start: int = 0, kinds: Sequence[Kind] = ()) -> list[tuple[int, ControlRecord]]:
        call = self._actor.decisions.remote(start=start, kinds=kinds)
        records: list[tuple[int, ControlRecord]] = wait_for(call, timeout_s=CALL_S)
        return records

    def ledger(self) -> Ledger:
        ledger: Ledger = wait_for(self._actor.ledger.remote(), timeout_s=CALL_S)
        return ledger


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
