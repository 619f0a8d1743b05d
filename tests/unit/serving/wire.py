"""A producer's stream and a tail spoken by hand, so that a test may say what no client would."""

from __future__ import annotations

from collections.abc import Iterator
from queue import SimpleQueue
from types import TracebackType
from typing import Any, Self

import grpc

from serving.access import authorize
from serving.columns import FORMAT_VERSION, SCHEMA_BYTES
from serving.v1 import store_pb2 as pb
from serving.v1 import store_pb2_grpc
from tests.contract.stores import TOKEN

OPENING = pb.StreamExperienceRequest(opening=pb.Opening(format_version=FORMAT_VERSION, schema=SCHEMA_BYTES))


class Line:
    """One call with requests and responses as the test wants them."""

    def __init__(self, address: str, method: str, *, token: str | None = TOKEN) -> None:
        self._channel = grpc.insecure_channel(address, options=[("grpc.max_receive_message_length", 80 << 20)])
        self._requests: SimpleQueue[Any] = SimpleQueue()
        stub = store_pb2_grpc.ExperienceStoreServiceStub(self._channel)  # type: ignore[no-untyped-call]
        self.call: Any = getattr(stub, method)(self._sent(), metadata=authorize(token), timeout=30)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.call.cancel()
        self._requests.put(None)
        self._channel.close()

    def send(self, *requests: Any) -> None:
        for request in requests:
            self._requests.put(request)

    def close(self) -> None:
        """Nothing more comes from us."""
        self._requests.put(None)

    def hear(self) -> Any:
        """The next response."""
        return next(self.call)

    def fail(self) -> tuple[grpc.StatusCode, str]:
        """How the call ended, whatever came before."""
        try:
            for _ in self.call:
                continue
        except grpc.RpcError:
            pass
        return self.call.code(), self.call.details()

    def _sent(self) -> Iterator[Any]:
        while (request := self._requests.get()) is not None:
            yield request


def frame(number: int, data: bytes) -> pb.StreamExperienceRequest:
    return pb.StreamExperienceRequest(frame=pb.Frame(number=number, record_batch=data))
