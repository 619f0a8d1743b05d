"""Messages have the fields of the records they carry, come back equal, and are not believed where they do not fit."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from buffers.codec import encode
from buffers.plain import check_values
from contracts import errors
from contracts.errors import FencedError, FormatError, StoreError, UserError
from contracts.protocols import BatchRequest
from contracts.records import Ack, Fault, Kind, Lease, Ledger, Task
from serving import wire
from serving.v1 import store_pb2 as pb
from tests.unit.buffers.samples import SAMPLES, TASK

PAIRS = {"Task": Task, "TaskLease": Lease, "Ack": Ack, "Ledger": Ledger, "BatchRequest": BatchRequest}
DECISIONS = [kind for kind in SAMPLES if kind >= Kind.SESSION or kind is Kind.PRIORITY]


@pytest.mark.parametrize("name", PAIRS)
def test_a_message_has_the_fields_of_its_record(name: str) -> None:
    fields = [field.name for field in pb.DESCRIPTOR.message_types_by_name[name].fields]
    assert sorted(fields) == sorted(field.name for field in dataclasses.fields(PAIRS[name]))


@pytest.mark.parametrize("payload", [None, b"", b"\x00\xff"])
def test_a_lease_comes_back(payload: bytes | None) -> None:
    lease = Lease(lsn=2**40, task=dataclasses.replace(TASK, payload=payload), missing=(0, 3))
    assert wire.read_lease(pb.TaskLease.FromString(wire.to_lease(lease).SerializeToString())) == lease


def test_sums_and_acks_and_requests_come_back() -> None:
    ledger = Ledger(
        handed=9,
        ended={"trained": 4},
        in_flight=5,
        ready=1,
        episodes=30,
        episodes_late=2,
        episodes_trained=8,
        quarantined={"reward": 3},
    )
    assert wire.read_ledger(wire.to_ledger(ledger)) == ledger
    acks = [Ack(lsn=8), Ack(lsn=16, duplicate=True), Ack(lsn=24, late=True), Ack(lsn=32, fault=Fault.REWARD)]
    assert wire.read_acks(wire.to_acks(acks)) == acks
    request = BatchRequest(
        session=1,
        branch=2,
        step=3,
        parent_version=4,
        num_groups=5,
        max_staleness=6,
        seed=2**62,
        coefficients={"kl": 0.1},
        with_spread=True,
    )
    assert wire.read_batch_request(wire.to_batch_request(request)) == request


@pytest.mark.parametrize("kind", DECISIONS)
def test_a_decision_comes_back(kind: Kind) -> None:
    record: Any = SAMPLES[kind]
    assert wire.read_decision(wire.to_record(record, lsn=8)) == record


@pytest.mark.parametrize("kind", [Kind.EPISODE, Kind.TASK, Kind.FEEDBACK, Kind.QUARANTINED])
def test_what_is_no_decision_is_refused(kind: Kind) -> None:
    with pytest.raises(FormatError, match="no decision"):
        wire.read_decision(pb.Record(kind=kind, payload=encode(SAMPLES[kind])))


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        (Kind.VERSION, {"version": "7"}),
        (Kind.VERSION, {"stats": {"loss": "low"}}),
        (Kind.VERSION, {"step": 1.5}),
        (Kind.SERVED, {"gap": None}),
        (Kind.SESSION, {"role": b"learner"}),
        (Kind.SESSION, {"step_repeats": 3}),
        (Kind.FAILURE, {"detail": True}),
    ],
)
def test_a_decision_of_other_types_is_refused(kind: Kind, changes: dict[str, Any]) -> None:
    record = dataclasses.replace(SAMPLES[kind], **changes)
    with pytest.raises(StoreError, match=next(iter(changes))):
        check_values(record)


@given(st.sampled_from(DECISIONS), st.binary(max_size=64), st.integers(0, 200), st.integers(0, 30))
def test_bytes_that_are_no_decision_are_refused(kind: Kind, noise: bytes, place: int, cut: int) -> None:
    """A payload with noise in it reads as some decision of the right types, or is refused: nothing else."""
    whole = encode(SAMPLES[kind])
    place %= len(whole)
    damaged = whole[:place] + noise + whole[place + len(noise) :]
    try:
        record = wire.read_decision(pb.Record(kind=kind, payload=damaged[: len(damaged) - cut]))
    except FormatError:
        return
    check_values(record)


@pytest.mark.parametrize("kind", sorted(set(range(256)) - {int(kind) for kind in Kind}))
def test_kinds_that_nobody_knows_are_refused(kind: int) -> None:
    with pytest.raises(FormatError):
        wire.read_decision(pb.Record(kind=kind, payload=b""))


def test_errors_keep_their_names() -> None:
    for error in (FencedError("old"), StoreError("bad"), FormatError("odd")):
        refusal = wire.name_error(error)
        back = wire.error_of(refusal.error, refusal.reason)
        assert (type(back), str(back)) == (type(error), str(error))


@pytest.mark.parametrize("name", ["", "errno", "RatchetError", "ActorDiedError", "__builtins__", "is_disk_full"])
def test_a_name_that_is_no_error_of_a_store_names_none(name: str) -> None:
    found = wire.error_of(name, "why")
    assert type(found) is StoreError
    assert not isinstance(getattr(errors, name, None), StoreError | UserError)


def test_a_long_reason_is_cut() -> None:
    assert len(wire.name_error(StoreError("x" * 100_000)).reason) == wire.MAX_DETAIL_CHARACTERS
