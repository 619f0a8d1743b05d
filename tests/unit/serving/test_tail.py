"""Readers that follow a log: order, kinds, credit, segments, trimmed places, and what a slow one costs."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from pathlib import Path

import grpc
import pytest

from buffers.log.segments import list_starts, name_segment
from buffers.reading import Records
from contracts.errors import StoreError
from contracts.records import Episode, Kind, Session, Task, Version
from serving.client import RemoteStore
from serving.v1 import store_pb2 as pb
from tests.contract.stores import SERVING, open_remote, served, small_config
from tests.unit.serving.test_streams import MIB, Bench, large
from tests.unit.serving.wire import Line


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with served(tmp_path, small_config(steps=10_000, max_staleness=50)) as (server, owner):
        yield Bench(server, owner)


@pytest.fixture
def store(bench: Bench) -> Iterator[RemoteStore]:
    with open_remote(bench.server) as store:
        yield store


def fill(bench: Bench, *, num_bytes: int) -> list[int]:
    """LSNs of episodes of 256 KiB, that many bytes in all; segments hold 1 MiB."""
    episodes = bench.episodes()[: num_bytes // (MIB // 4)]
    assert len(episodes) == num_bytes // (MIB // 4)
    return [bench.owner.append([large(episode, MIB // 4)])[0].lsn for episode in episodes]


def test_a_tail_has_every_record_in_order(bench: Bench, store: RemoteStore, tmp_path: Path) -> None:
    lsns = fill(bench, num_bytes=3 * MIB)
    found = list(islice(store.tail(), len(bench.leases) + len(lsns)))
    assert [lsn for lsn, _ in found] == [lease.lsn for lease in bench.leases] + lsns
    assert [record for _, record in found[: len(bench.leases)]] == [lease.task for lease in bench.leases]
    episodes = [record for _, record in found if isinstance(record, Episode)]
    assert [episode.steps[0].observation.nbytes for episode in episodes] == [MIB // 4] * len(lsns)
    assert len(list_starts(tmp_path / "store" / "data")) > 2


def test_a_tail_waits_for_what_is_not_there_yet(bench: Bench, store: RemoteStore) -> None:
    follower = iter(store.tail(kinds=[Kind.EPISODE]))
    with ThreadPoolExecutor(1) as threads:
        coming = threads.submit(next, follower)
        (ack, *_) = bench.owner.append(bench.episodes())
        lsn, _ = coming.result(timeout=20)
    assert lsn == ack.lsn


def test_a_tail_starts_where_it_is_told_and_says_where_to_go_on(bench: Bench, store: RemoteStore) -> None:
    lsns = fill(bench, num_bytes=3 * MIB)
    tail = store.tail(kinds=[Kind.EPISODE], start=lsns[4])
    first = [lsn for lsn, _ in islice(tail, 5)]
    again = store.tail(kinds=[Kind.EPISODE], start=tail.next_lsn)
    rest = [lsn for lsn, _ in islice(again, lsns.index(lsns[-1]) - lsns.index(first[-1]) + 1)]
    assert sorted({*first, *rest}) == lsns[4:]


def test_the_control_log_too_has_a_tail(bench: Bench, store: RemoteStore) -> None:
    found = [record for _, record in islice(store.tail(log="control"), 3)]
    assert [type(record) for record in found] == [Session, Session, Version]
    assert found == [record for _, record in bench.owner.decisions()[:3]]


def test_no_more_is_sent_than_there_is_credit_for(bench: Bench) -> None:
    fill(bench, num_bytes=5 * MIB)
    with Line(bench.server.address, "Tail") as line:
        line.send(pb.TailRequest(start=pb.Start(kinds=[Kind.EPISODE], credit_bytes=MIB)))
        heard = 0
        while heard < MIB:
            heard += line.hear().ByteSize()
        assert bench.metric("ratchet_serving_bytes_total", direction="out") == heard
        line.send(pb.TailRequest(credit_bytes=heard))
        more = line.hear().ByteSize()
        assert bench.metric("ratchet_serving_bytes_total", direction="out") >= heard + more


def test_a_reader_that_stalls_costs_no_writer_anything(bench: Bench, store: RemoteStore) -> None:
    stalled = iter(store.tail(window_bytes=MIB))
    next(stalled)
    lsns = fill(bench, num_bytes=8 * MIB)
    assert bench.metric("ratchet_serving_bytes_total", direction="out") < 3 * MIB
    assert bench.metric("ratchet_serving_streams", kind="tail") == 1
    rest = [lsn for lsn, record in islice(stalled, len(bench.leases) - 1 + len(lsns)) if isinstance(record, Episode)]
    assert rest == lsns


def test_a_place_that_was_trimmed_is_told(bench: Bench, store: RemoteStore, tmp_path: Path) -> None:
    lsns = fill(bench, num_bytes=4 * MIB)
    data = tmp_path / "store" / "data"
    second = list_starts(data)[1]
    name_segment(data, 0).unlink()
    with pytest.raises(StoreError, match=f"to {second} was trimmed"):
        next(iter(store.tail(start=lsns[0])))
    oldest, _ = next(iter(store.tail()))
    assert oldest >= second


def test_a_tail_goes_on_with_the_next_server(tmp_path: Path) -> None:
    with served(tmp_path, small_config()) as (server, owner):
        bench = Bench(server, owner)
        store = open_remote(server)
        tail = iter(store.tail(kinds=[Kind.TASK, Kind.EPISODE]))
        before = [lsn for lsn, _ in islice(tail, len(bench.leases))]
        settings = SERVING.model_copy(update={"port": server.port})
    with store, served(tmp_path, small_config(), settings=settings) as (_, owner):
        epoch = owner.attach(bench.driver.producer)
        acks = owner.append([replace(episode, producer_epoch=epoch) for episode in bench.episodes()])
        after = [lsn for lsn, _ in islice(tail, len(acks))]
    assert before == [lease.lsn for lease in bench.leases]
    assert after == [ack.lsn for ack in acks]


def test_a_tail_that_is_closed_ends(bench: Bench, store: RemoteStore) -> None:
    tail = store.tail()
    follower = iter(tail)
    assert isinstance(next(follower)[1], Task)
    with ThreadPoolExecutor(1) as threads:
        rest = threads.submit(list, follower)
        tail.close()
        rest.result(timeout=20)


@pytest.mark.parametrize(
    "start", [pb.TailRequest(), pb.TailRequest(credit_bytes=5), pb.TailRequest(start=pb.Start(lsn=-8))]
)
def test_a_tail_from_nowhere_is_refused(bench: Bench, start: pb.TailRequest) -> None:
    with Line(bench.server.address, "Tail") as line:
        line.send(start)
        assert line.fail()[0] is grpc.StatusCode.INVALID_ARGUMENT


def test_a_tail_shows_only_what_is_durable(bench: Bench, store: RemoteStore, tmp_path: Path) -> None:
    lsns = fill(bench, num_bytes=MIB)
    records = Records(tmp_path / "store", uuid=bench.owner.uuid)
    tail = store.tail(kinds=[Kind.EPISODE])
    assert [lsn for lsn, _ in islice(tail, len(lsns))] == lsns
    assert tail.next_lsn <= records.data.watermark()
