"""What travels besides episodes: leases, acknowledgements, sums and decisions as messages, and errors as statuses."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any, NoReturn, TypeVar, cast

import grpc
import msgpack

from buffers.codec import decode, encode
from buffers.plain import check_values
from contracts import errors
from contracts.errors import (
    FencedError,
    FormatError,
    RatchetError,
    StoreError,
    StoreFullError,
    StoreStoppedError,
    StoreUnreachableError,
    UserError,
)
from contracts.protocols import BatchRequest
from contracts.records import Ack, Decision, Fault, Kind, Lease, Ledger, Record, Task
from serving.v1 import store_pb2 as pb

ERROR_KEY = "ratchet-error"  # in a refusal's trailing metadata: the error's name
MAX_DETAIL_CHARACTERS = 1_000  # of a status; metadata has little room
FIRST_CONTROL_KIND = Kind.SESSION

CODES: dict[type[RatchetError], grpc.StatusCode] = {
    FencedError: grpc.StatusCode.FAILED_PRECONDITION,
    StoreFullError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    StoreStoppedError: grpc.StatusCode.FAILED_PRECONDITION,
    FormatError: grpc.StatusCode.INVALID_ARGUMENT,
    UserError: grpc.StatusCode.INVALID_ARGUMENT,
}
OTHER = grpc.StatusCode.FAILED_PRECONDITION
# What may be as before in a moment: a server that starts again, or a cut line.
PASSING = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED})

T = TypeVar("T")


# ---------------------------------------------------------------------------------------------- errors


def refuse(context: grpc.ServicerContext, error: RatchetError) -> NoReturn:
    """End a call with the status of an error."""
    context.set_trailing_metadata(((ERROR_KEY, type(error).__name__),))
    abort(context, CODES.get(type(error), OTHER), str(error))


def abort(context: grpc.ServicerContext, code: grpc.StatusCode, detail: str) -> NoReturn:
    context.abort(code, detail[:MAX_DETAIL_CHARACTERS])
    raise AssertionError("abort raises")


def name_error(error: RatchetError) -> pb.Refusal:
    return pb.Refusal(error=type(error).__name__, reason=str(error)[:MAX_DETAIL_CHARACTERS])


def error_of(name: str, reason: str) -> RatchetError:
    """The error of that name, if it is one that a store raises."""
    found = getattr(errors, name, None)
    if isinstance(found, type) and issubclass(found, StoreError | UserError):
        return cast("type[RatchetError]", found)(reason)
    return StoreError(reason)


def error_of_status(error: grpc.RpcError) -> RatchetError:
    """What a failed call means to its caller."""
    assert isinstance(error, grpc.Call)
    code, detail = error.code(), error.details() or ""
    names = [value for key, value in error.trailing_metadata() or () if key == ERROR_KEY]
    if names:
        return error_of(str(names[0]), detail)
    if code is grpc.StatusCode.UNAUTHENTICATED:
        return UserError("a call of the store", detail, "give the token that the store's server was started with")
    if code in PASSING or code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return StoreUnreachableError(f"the store did not answer ({code.name}): {detail}")
    return StoreError(f"the store refused ({code.name}): {detail}")


# ---------------------------------------------------------------------------------------------- messages


def to_record(record: Record, *, lsn: int = 0) -> pb.Record:
    return pb.Record(lsn=lsn, kind=int(record.KIND), payload=encode(record))


def read_record(message: pb.Record) -> Record:
    """Any record. Raises FormatError."""
    return decode(message.kind, message.payload)


def read_decision(message: pb.Record) -> Decision:
    """A control record, which may come from anybody: every value has the type that its field says. FormatError."""
    if message.kind < FIRST_CONTROL_KIND and message.kind != Kind.PRIORITY:
        raise FormatError(f"a record of kind {message.kind} is no decision")
    try:
        record = decode(message.kind, message.payload)
    except (AttributeError, OverflowError, RecursionError, MemoryError, msgpack.UnpackException) as error:
        raise FormatError(f"a decision that does not read: {error!r}") from error
    try:
        check_values(record)
    except StoreError as error:
        raise FormatError(f"a decision that does not read: {error}") from error
    return cast(Decision, record)


def to_task(task: Task) -> pb.Task:
    return pb.Task(**_fields(task))


def read_task(message: pb.Task) -> Task:
    payload = message.payload if message.HasField("payload") else None
    return Task(**{**_read_fields(Task, message), "payload": payload})


def to_lease(lease: Lease) -> pb.TaskLease:
    return pb.TaskLease(lsn=lease.lsn, task=to_task(lease.task), missing=lease.missing)


def read_lease(message: pb.TaskLease) -> Lease:
    return Lease(lsn=message.lsn, task=read_task(message.task), missing=tuple(message.missing))


def to_acks(acks: Iterable[Ack]) -> list[pb.Ack]:
    return [pb.Ack(**{**_fields(ack), "fault": ack.fault and ack.fault.value}) for ack in acks]


def read_acks(messages: Iterable[pb.Ack]) -> list[Ack]:
    return [
        Ack(**{**_read_fields(Ack, message), "fault": Fault(message.fault) if message.HasField("fault") else None})
        for message in messages
    ]


def to_ledger(ledger: Ledger) -> pb.Ledger:
    return pb.Ledger(**_fields(ledger))


def read_ledger(message: pb.Ledger) -> Ledger:
    return Ledger(
        **{**_read_fields(Ledger, message), "ended": dict(message.ended), "quarantined": dict(message.quarantined)}
    )


def to_batch_request(request: BatchRequest) -> pb.BatchRequest:
    return pb.BatchRequest(**{**_fields(request), "coefficients": dict(request.coefficients)})


def read_batch_request(message: pb.BatchRequest) -> BatchRequest:
    return BatchRequest(**{**_read_fields(BatchRequest, message), "coefficients": dict(message.coefficients)})


def _fields(record: Any) -> dict[str, Any]:
    """A record's fields by name: a message of the same name has the same ones."""
    return {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}


def _read_fields(kind: type[Any], message: Any) -> dict[str, Any]:
    return {field.name: getattr(message, field.name) for field in dataclasses.fields(kind)}
