"""The calls of the service, each over the store that the server was handed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import wraps
from threading import BoundedSemaphore, Event
from typing import Any, Protocol, TypeVar, cast

import grpc

from buffers.log.reader import LogReader
from buffers.reading import Records
from configs.schema import Serving
from contracts.errors import RatchetError, UserError
from contracts.protocols import Store
from contracts.records import ControlRecord, Decision, Kind
from serving.columns import SCHEMA_BYTES, count_bytes, write_batch
from serving.experience import ExperienceStream, Limits
from serving.meter import OTHER, Meter
from serving.tail import TailStream
from serving.v1 import store_pb2 as pb
from serving.v1 import store_pb2_grpc
from serving.wire import (
    abort,
    read_batch_request,
    read_decision,
    refuse,
    to_lease,
    to_ledger,
    to_record,
)

CHUNK_BYTES = 1 << 20  # of episodes or records in one response
CHUNK_EPISODES = 64  # read from the disk at once
ROOM_BYTES = 64 << 10  # of a message around its record batch
MAX_NAME_CHARACTERS = 256  # of a producer
MAX_WAIT_S = 300.0  # of a call that waits for tasks or groups

F = TypeVar("F", bound=Callable[..., Any])


class ServedStore(Store, Protocol):
    """What the server is handed: a store that also says how it stands."""

    def status(self) -> Mapping[str, object]:
        """`uuid`, `epoch`, `environment`, `served`, `data_lsn`, `control_lsn`, `outstanding`, and more."""
        ...


def answering(method: F) -> F:
    """A call's border: an error on purpose becomes a typed status."""

    @wraps(method)
    def answer(self: ExperienceStoreService, request: Any, context: grpc.ServicerContext) -> Any:
        try:
            return method(self, request, context)
        except RatchetError as error:
            self.meter.refused(error)
            refuse(context, error)

    return answer  # type: ignore[return-value] # the same signature


def streaming(method: F) -> F:
    """The same for a call with many responses."""

    @wraps(method)
    def answer(self: ExperienceStoreService, request: Any, context: grpc.ServicerContext) -> Any:
        try:
            yield from method(self, request, context)
        except RatchetError as error:
            self.meter.refused(error)
            refuse(context, error)

    return answer  # type: ignore[return-value] # the same signature


class ExperienceStoreService(store_pb2_grpc.ExperienceStoreServiceServicer):
    """Thread-safe; serving/v1/store.proto says what each call promises."""

    def __init__(self, store: ServedStore, *, records: Records, settings: Serving, meter: Meter) -> None:
        self.meter = meter
        self._stopping = Event()
        self._producers: set[ExperienceStream] = set()
        self._store, self._settings = store, settings
        self._logs: dict[int, LogReader] = {
            pb.LOG_UNSPECIFIED: records.data,
            pb.LOG_DATA: records.data,
            pb.LOG_CONTROL: records.control,
        }
        self._limits = Limits(
            credit_bytes=settings.credit_mib << 20, max_frame_bytes=(settings.max_message_mib << 20) - ROOM_BYTES
        )
        self._places = BoundedSemaphore(settings.max_streams)

    def end(self) -> None:
        """End all streams as soon as what has come is answered."""
        self._stopping.set()
        for stream in list(self._producers):
            stream.end()

    # ------------------------------------------------------------------------------------------ producers

    @answering
    def Attach(self, request: pb.AttachRequest, _: grpc.ServicerContext) -> pb.AttachResponse:  # noqa: N802
        if not 0 < len(request.producer) <= MAX_NAME_CHARACTERS:
            raise UserError(
                f"attach a producer with a name of {len(request.producer)} characters",
                f"names have 1 to {MAX_NAME_CHARACTERS}",
            )
        return pb.AttachResponse(epoch=self._store.attach(request.producer))

    @answering
    def Lease(self, request: pb.LeaseRequest, _: grpc.ServicerContext) -> pb.LeaseResponse:  # noqa: N802
        world = request.world or 1
        if request.max_tasks < 0 or not 0 <= request.rank < world:
            raise UserError(f"{request.max_tasks} tasks for rank {request.rank} of {world}", "there are none such")
        leases = self._store.lease(
            request.producer,
            request.epoch,
            max_tasks=request.max_tasks,
            rank=request.rank,
            world=world,
            wait_s=read_wait(request.wait_s),
        )
        return pb.LeaseResponse(leases=[to_lease(lease) for lease in leases])

    @streaming
    def StreamExperience(  # noqa: N802
        self, requests: Iterator[pb.StreamExperienceRequest], context: grpc.ServicerContext
    ) -> Iterator[pb.StreamExperienceResponse]:
        stream = ExperienceStream(self._store, requests, limits=self._limits, meter=self.meter)
        self._producers.add(stream)
        try:
            yield from self._hold_place("producer", stream.run(), context)
        finally:
            self._producers.discard(stream)

    @streaming
    def Read(self, request: pb.ReadRequest, context: grpc.ServicerContext) -> Iterator[pb.ReadResponse]:  # noqa: N802
        yield from self._hold_place("read", self._read(request), context)

    def _read(self, request: pb.ReadRequest) -> Iterator[pb.ReadResponse]:
        schema = SCHEMA_BYTES
        for start in range(0, len(request.lsns), CHUNK_EPISODES):
            episodes = self._store.read(request.lsns[start : start + CHUNK_EPISODES])
            for part in cut([count_bytes(episode) for episode in episodes]):
                data = write_batch(episodes[part])
                self.meter.sent(len(data))
                yield pb.ReadResponse(schema=schema, record_batch=data)
                schema = b""

    @streaming
    def Tail(  # noqa: N802
        self, requests: Iterator[pb.TailRequest], context: grpc.ServicerContext
    ) -> Iterator[pb.TailResponse]:
        stream = TailStream(self._logs, requests, meter=self.meter, stopping=self._stopping)
        yield from self._hold_place("tail", stream.run(), context)

    # ------------------------------------------------------------------------------------------ everyone

    @answering
    def GetStatus(self, _: pb.GetStatusRequest, __: grpc.ServicerContext) -> pb.GetStatusResponse:  # noqa: N802
        status = self._store.status()
        answer = pb.GetStatusResponse()
        for field in answer.DESCRIPTOR.fields:
            setattr(answer, field.name, status[field.name])
        return answer

    @answering
    def GetLedger(self, _: pb.GetLedgerRequest, __: grpc.ServicerContext) -> pb.GetLedgerResponse:  # noqa: N802
        return pb.GetLedgerResponse(ledger=to_ledger(self._store.ledger()))

    @streaming
    def GetDecisions(  # noqa: N802
        self, request: pb.GetDecisionsRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.GetDecisionsResponse]:
        yield from self._hold_place("read", self._get_decisions(request), context)

    def _get_decisions(self, request: pb.GetDecisionsRequest) -> Iterator[pb.GetDecisionsResponse]:
        found = self._store.decisions(start=request.start, kinds=read_kinds(request.kinds))
        messages = [to_record(record, lsn=lsn) for lsn, record in found]
        for part in cut([len(message.payload) for message in messages]):
            yield pb.GetDecisionsResponse(records=messages[part])

    # ------------------------------------------------------------------------------------------ learners

    @answering
    def OpenSession(  # noqa: N802
        self, request: pb.OpenSessionRequest, context: grpc.ServicerContext
    ) -> pb.OpenSessionResponse:
        record = cast(ControlRecord, self._read_decision(request.record, context))  # the store takes a Session alone
        return pb.OpenSessionResponse(lsn=self._store.open_session(record))

    @answering
    def AppendBatch(  # noqa: N802
        self, request: pb.AppendBatchRequest, context: grpc.ServicerContext
    ) -> pb.AppendBatchResponse:
        self._check_learner(context)
        cut_batch = self._store.append_batch(read_batch_request(request.request), wait_s=read_wait(request.wait_s))
        if cut_batch is None:
            return pb.AppendBatchResponse()
        lsn, batch = cut_batch
        return pb.AppendBatchResponse(batch=to_record(batch, lsn=lsn))

    @answering
    def Decide(self, request: pb.DecideRequest, context: grpc.ServicerContext) -> pb.DecideResponse:  # noqa: N802
        record = self._read_decision(request.record, context)
        return pb.DecideResponse(lsn=self._store.decide(record, request.session))

    # ------------------------------------------------------------------------------------------ behind them

    def _read_decision(self, message: pb.Record, context: grpc.ServicerContext) -> Decision:
        self._check_learner(context)
        return read_decision(message)

    def _check_learner(self, context: grpc.ServicerContext) -> None:
        if not self._settings.decisions:
            self.meter.refused_for(OTHER)
            detail = "this server takes no decisions from outside (serving.decisions is false)"
            abort(context, grpc.StatusCode.PERMISSION_DENIED, detail)

    def _hold_place(self, kind: str, responses: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
        """A stream holds one of the server's threads, and short calls must always find one."""
        if not self._places.acquire(blocking=False):
            self.meter.refused_for(OTHER)
            detail = f"{self._settings.max_streams} streams are open, as many as serving.max_streams allows"
            abort(context, grpc.StatusCode.RESOURCE_EXHAUSTED, detail)
        try:
            with self.meter.stream(kind):
                yield from responses
        finally:
            self._places.release()


def cut(sizes: Sequence[int]) -> Iterator[slice]:
    """Consecutive parts of about CHUNK_BYTES each, at least one item in each."""
    start, num_bytes = 0, 0
    for place, size in enumerate(sizes):
        if place > start and num_bytes + size > CHUNK_BYTES:
            yield slice(start, place)
            start, num_bytes = place, 0
        num_bytes += size
    if start < len(sizes):
        yield slice(start, len(sizes))


def read_wait(wait_s: float) -> float:
    """Raises UserError on what is no time to wait."""
    if not 0 <= wait_s <= MAX_WAIT_S:
        raise UserError(f"a wait of {wait_s} s", f"a call may wait 0 to {MAX_WAIT_S:g} s")
    return wait_s


def read_kinds(numbers: Sequence[int]) -> list[Kind]:
    """Raises UserError on a number that is no kind of record."""
    known = {int(kind) for kind in Kind}
    if unknown := sorted(set(numbers) - known):
        raise UserError(f"records of kinds {unknown}", f"there is {sorted(known)}")
    return [Kind(number) for number in numbers]
