"""The store from elsewhere: contracts.protocols.Store over gRPC, and a tail of its logs.

with connect("127.0.0.1:4711", token=os.environ.get("RATCHET_SERVING_TOKEN")) as store:
    epoch = store.attach("my-producer")
    for lease in store.lease("my-producer", epoch, max_tasks=4): ...
    acks = store.append(episodes)
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from heapq import merge
from operator import itemgetter
from queue import SimpleQueue
from threading import Event
from types import TracebackType
from typing import Any, Literal, Self, cast

import grpc

from contracts.protocols import BatchRequest
from contracts.records import Ack, Batch, ControlRecord, Decision, Episode, Kind, Lease, Ledger, Record
from serving.access import Tls, authorize, open_channel
from serving.columns import read_batch
from serving.producer import ProducerStream
from serving.v1 import store_pb2 as pb
from serving.v1 import store_pb2_grpc
from serving.wire import (
    PASSING,
    error_of_status,
    read_lease,
    read_ledger,
    read_record,
    to_batch_request,
    to_record,
)

CALL_S = 60.0  # a store call is a few milliseconds; an fsync on a disk in trouble can take many seconds
PAUSE_S = 0.1  # before a call that found nobody is tried again
WINDOW_BYTES = 16 << 20  # what may be under way, each way
MAX_RESPONSE_BYTES = 80 << 20  # the longest record is 64 MiB

OPTIONS: list[tuple[str, Any]] = [
    ("grpc.max_receive_message_length", MAX_RESPONSE_BYTES),
    ("grpc.max_send_message_length", -1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.use_local_subchannel_pool", 1),  # a client's connection is its own
]


def connect(
    address: str, *, token: str | None = None, tls: Tls | None = None, timeout_s: float = CALL_S
) -> RemoteStore:
    """The store served at host:port. `timeout_s` is the deadline of each call.

    Raises UserError rather than talk in plain text to another machine. No call is made yet.
    """
    return RemoteStore(open_channel(address, token=token, tls=tls, options=OPTIONS), token=token, timeout_s=timeout_s)


class RemoteStore:
    """contracts.protocols.Store. Thread-safe; each call is tried again until its deadline while nobody answers.

    Beside the protocol's errors it raises StoreUnreachableError, and UserError for a wrong token.
    """

    def __init__(self, channel: grpc.Channel, *, token: str | None, timeout_s: float) -> None:
        self._channel, self._timeout_s = channel, timeout_s
        self._metadata = authorize(token)
        self._stub = store_pb2_grpc.ExperienceStoreServiceStub(channel)  # type: ignore[no-untyped-call]
        self._producer = ProducerStream(
            lambda requests: self._stub.StreamExperience(requests, metadata=self._metadata), window_bytes=WINDOW_BYTES
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._producer.close()
        self._channel.close()

    # ------------------------------------------------------------------------------------------ producers

    def attach(self, producer: str) -> int:
        return int(self._ask(self._stub.Attach, pb.AttachRequest(producer=producer)).epoch)

    def lease(
        self, producer: str, epoch: int, *, max_tasks: int, rank: int = 0, world: int = 1, wait_s: float = 0.0
    ) -> list[Lease]:
        request = pb.LeaseRequest(
            producer=producer, epoch=epoch, max_tasks=max_tasks, rank=rank, world=world, wait_s=wait_s
        )
        return [read_lease(lease) for lease in self._ask(self._stub.Lease, request, wait_s=wait_s).leases]

    def append(self, episodes: Sequence[Episode]) -> list[Ack]:
        return self._producer.append(episodes, timeout_s=self._timeout_s)

    # ------------------------------------------------------------------------------------------ learners

    def open_session(self, record: ControlRecord) -> int:
        return int(self._ask(self._stub.OpenSession, pb.OpenSessionRequest(record=to_record(record))).lsn)

    def append_batch(self, request: BatchRequest, *, wait_s: float = 0.0) -> tuple[int, Batch] | None:
        message = pb.AppendBatchRequest(request=to_batch_request(request), wait_s=wait_s)
        answer = self._ask(self._stub.AppendBatch, message, wait_s=wait_s)
        if not answer.HasField("batch"):
            return None
        return answer.batch.lsn, cast(Batch, read_record(answer.batch))

    def read(self, lsns: Sequence[int]) -> list[Episode]:
        responses: list[pb.ReadResponse] = self._ask_for_all(self._stub.Read, pb.ReadRequest(lsns=lsns))
        return [episode for response in responses for episode in read_batch(response.record_batch)]

    def decide(self, record: Decision, session: int) -> int:
        return int(self._ask(self._stub.Decide, pb.DecideRequest(record=to_record(record), session=session)).lsn)

    def decisions(self, *, start: int = 0, kinds: Sequence[Kind] = ()) -> list[tuple[int, ControlRecord]]:
        request = pb.GetDecisionsRequest(start=start, kinds=[int(kind) for kind in kinds])
        responses = self._ask_for_all(self._stub.GetDecisions, request)
        return [
            (message.lsn, cast(ControlRecord, read_record(message)))
            for response in responses
            for message in response.records
        ]

    # ------------------------------------------------------------------------------------------ everyone

    def ledger(self) -> Ledger:
        return read_ledger(self._ask(self._stub.GetLedger, pb.GetLedgerRequest()).ledger)

    def status(self) -> dict[str, object]:
        """`uuid`, `epoch`, `environment`, `served`, `data_lsn`, `control_lsn`, `outstanding`."""
        answer = self._ask(self._stub.GetStatus, pb.GetStatusRequest())
        return {field.name: getattr(answer, field.name) for field in answer.DESCRIPTOR.fields}

    def tail(
        self,
        *,
        log: Literal["data", "control"] = "data",
        start: int = 0,
        kinds: Sequence[Kind] = (),
        window_bytes: int = WINDOW_BYTES,
    ) -> Tail:
        """Follow a log from LSN `start` on; `kinds`: none for all. At most `window_bytes` and a response wait here."""
        place = pb.Start(
            log=pb.LOG_DATA if log == "data" else pb.LOG_CONTROL,
            lsn=start,
            kinds=[int(kind) for kind in kinds],
            credit_bytes=window_bytes,
        )
        return Tail(self._stub, place, metadata=self._metadata, timeout_s=self._timeout_s)

    # ------------------------------------------------------------------------------------------ calls

    def _ask(self, method: Any, request: Any, *, wait_s: float = 0.0) -> Any:
        return self._until_answered(
            lambda left_s: method(request, timeout=left_s, metadata=self._metadata), wait_s=wait_s
        )

    def _ask_for_all(self, method: Any, request: Any) -> Any:
        return self._until_answered(lambda left_s: list(method(request, timeout=left_s, metadata=self._metadata)))

    def _until_answered(self, call: Any, *, wait_s: float = 0.0) -> Any:
        deadline_s = time.monotonic() + self._timeout_s + wait_s
        while True:
            try:
                return call(max(0.0, deadline_s - time.monotonic()))
            except grpc.RpcError as error:
                if error.code() not in PASSING or time.monotonic() + PAUSE_S > deadline_s:
                    raise error_of_status(error) from None
                Event().wait(PAUSE_S)


class Tail:
    """(LSN, record) in the order of the log, for ever; a line that is cut is made again where it was.

    For one thread; `close` may come from any other and ends the iteration. Raises StoreUnreachableError when nobody has
    answered for `timeout_s`, StoreError when the place was trimmed.
    """

    def __init__(self, stub: Any, start: pb.Start, *, metadata: Any, timeout_s: float) -> None:
        self._stub, self._start, self._metadata, self._timeout_s = stub, start, metadata, timeout_s
        self._closed = Event()
        self._call: Any = None

    @property
    def next_lsn(self) -> int:
        """Where another tail would go on after the newest response that was consumed."""
        return int(self._start.lsn)

    def close(self) -> None:
        self._closed.set()
        call = self._call
        if call is not None:
            call.cancel()

    def __iter__(self) -> Iterator[tuple[int, Record]]:
        heard_s = time.monotonic()
        while not self._closed.is_set():
            try:
                for records in self._follow():
                    yield from records
                    heard_s = time.monotonic()
                self._closed.wait(PAUSE_S)  # the server closes: another may take its place
            except grpc.RpcError as error:
                if self._closed.is_set():
                    return
                if error.code() not in PASSING or time.monotonic() - heard_s > self._timeout_s:
                    raise error_of_status(error) from None
                self._closed.wait(PAUSE_S)

    def _follow(self) -> Iterator[Iterator[tuple[int, Record]]]:
        """The records of each response. Credit goes back once they were taken."""
        grants: SimpleQueue[int | None] = SimpleQueue()
        self._call = call = self._stub.Tail(_requests(self._start, grants), metadata=self._metadata)
        if self._closed.is_set():
            call.cancel()
        try:
            for response in call:
                yield _merge(response)
                self._start.lsn = response.next_lsn
                grants.put(response.ByteSize())
        finally:
            grants.put(None)
            call.cancel()


def _requests(start: pb.Start, grants: SimpleQueue[int | None]) -> Iterator[pb.TailRequest]:
    yield pb.TailRequest(start=start)
    while (num_bytes := grants.get()) is not None:
        yield pb.TailRequest(credit_bytes=num_bytes)


def _merge(response: pb.TailResponse) -> Iterator[tuple[int, Record]]:
    episodes = zip(
        response.episode_lsns, read_batch(response.record_batch) if response.record_batch else (), strict=True
    )
    others = ((message.lsn, read_record(message)) for message in response.records)
    return merge(cast(Any, episodes), others, key=itemgetter(0))
