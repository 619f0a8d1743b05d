"""A producer's stream as the server keeps it: credit, batching, refusals, cut lines; and what the client does then."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from buffers.owner import StoreOwner
from contracts.errors import FencedError, FormatError, StoreError, StoreStoppedError, StoreUnreachableError
from contracts.records import Episode
from serving.client import RemoteStore
from serving.columns import SCHEMA_BYTES, write_batch
from serving.server import StoreServer
from serving.v1 import store_pb2 as pb
from tests.contract.stores import SERVING, Driver, Opened, open_remote, served, small_config
from tests.unit.buffers.bench import make_step
from tests.unit.serving.wire import OPENING, Line, frame

MIB = 1 << 20


class Bench:
    """A served store, its owner, and a driver that goes around the server."""

    def __init__(self, server: StoreServer, owner: StoreOwner) -> None:
        self.server, self.owner = server, owner
        self.driver = Driver(Opened(owner, str(owner.uuid)))
        self.driver.serve(0)
        self.leases = self.driver.lease()

    def episodes(self) -> list[Episode]:
        """Every episode that the leases ask for."""
        return [self.driver.make(lease, member) for lease in self.leases for member in lease.missing]

    def metric(self, name: str, **labels: str) -> float:
        found = self.server.metrics.registry.get_sample_value(name, labels)
        return 0.0 if found is None else found


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with served(tmp_path, small_config()) as (server, owner):
        yield Bench(server, owner)


@pytest.fixture
def store(bench: Bench) -> Iterator[RemoteStore]:
    with open_remote(bench.server) as store:
        yield store


def large(episode: Episode, num_bytes: int) -> Episode:
    """The episode with a prompt of that length."""
    step = replace(make_step(), observation=np.zeros(num_bytes // 4, dtype=np.int32))
    return replace(episode, steps=(step,))


# ---------------------------------------------------------------------------------------------- the server


def test_a_stream_opens_with_credit_and_gives_it_back(bench: Bench) -> None:
    data = write_batch(bench.episodes())
    with Line(bench.server.address, "StreamExperience") as line:
        line.send(OPENING)
        granted = line.hear()
        assert (granted.credit_bytes, granted.max_frame_bytes) == (4 * MIB, 4 * MIB - (64 << 10))
        line.send(frame(7, data))
        answer = line.hear()
        (outcome,) = answer.outcomes
        assert (outcome.number, answer.credit_bytes) == (7, len(data))
        assert [ack.duplicate for ack in outcome.acks] == [False] * len(bench.episodes())
        line.close()
        assert line.fail() == (grpc.StatusCode.OK, "")
    assert bench.owner.ledger().episodes == len(bench.episodes())


def test_one_bad_frame_of_many_is_refused_alone(bench: Bench) -> None:
    good, other, bad, fenced, *_ = bench.episodes()
    huge = replace(bad, member=2**62)
    messages = [
        write_batch([good]),
        b"garbage",
        write_batch([huge]),
        write_batch([replace(fenced, producer_epoch=1)]),
        write_batch([other]),
    ]
    with Line(bench.server.address, "StreamExperience") as line:
        line.send(OPENING, *[frame(number, data) for number, data in enumerate(messages)])
        line.close()
        outcomes = [outcome for response in line.call for outcome in response.outcomes]
    assert [outcome.number for outcome in outcomes] == [0, 1, 2, 3, 4]
    assert [outcome.refusal.error for outcome in outcomes] == ["", "FormatError", "", "FencedError", ""]
    assert [ack.fault for ack in outcomes[2].acks] == ["lease"]
    assert bench.owner.ledger().episodes == 2
    assert bench.metric("ratchet_serving_episodes_total", copy="first") == 3
    for reason in ("format", "fenced"):
        assert bench.metric("ratchet_serving_refusals_total", reason=reason) == 1


@pytest.mark.parametrize(
    ("requests", "code", "detail"),
    [
        ([frame(1, b"")], grpc.StatusCode.INVALID_ARGUMENT, "its first message is no opening"),
        ([pb.StreamExperienceRequest()], grpc.StatusCode.INVALID_ARGUMENT, "its first message is no opening"),
        (
            [pb.StreamExperienceRequest(opening=pb.Opening(format_version=2, schema=SCHEMA_BYTES))],
            grpc.StatusCode.INVALID_ARGUMENT,
            "this server reads 1",
        ),
        (
            [pb.StreamExperienceRequest(opening=pb.Opening(format_version=1, schema=b"garbage"))],
            grpc.StatusCode.INVALID_ARGUMENT,
            "the schema does not read",
        ),
        ([OPENING, OPENING], grpc.StatusCode.INVALID_ARGUMENT, "a message holds no frame"),
        ([OPENING, frame(1, bytes(4 * MIB - 100))], grpc.StatusCode.INVALID_ARGUMENT, "the longest is"),
        ([OPENING, frame(1, bytes(5 * MIB))], grpc.StatusCode.RESOURCE_EXHAUSTED, "larger than max"),
    ],
    ids=["no opening", "nothing", "version", "schema", "twice", "long frame", "oversized message"],
)
def test_what_is_no_stream_is_ended_with_its_reason(
    bench: Bench, requests: list[Any], code: grpc.StatusCode, detail: str
) -> None:
    with Line(bench.server.address, "StreamExperience") as line:
        line.send(*requests)
        found, text = line.fail()
    assert found is code
    assert detail in text


def test_who_sends_without_credit_is_cut_off(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk holds the first frame up for as long as it takes to send more than was granted."""
    held = threading.Event()
    append = bench.owner.append

    def slow(episodes: Any) -> Any:
        held.wait(20)
        return append(episodes)

    monkeypatch.setattr(bench.owner, "append", slow)
    data = write_batch([large(bench.episodes()[0], 3 * MIB)])
    with Line(bench.server.address, "StreamExperience") as line:
        line.send(OPENING, *[frame(number, data) for number in range(4)])
        line.hear()
        while bench.metric("ratchet_serving_bytes_total", direction="in") < 3 * len(data):
            threading.Event().wait(0.01)
        held.set()
        code, detail = line.fail()
    assert (code, "credit is used up" in detail) == (grpc.StatusCode.INVALID_ARGUMENT, True)


def test_bytes_that_are_no_message_end_the_call_alone(bench: Bench, store: RemoteStore) -> None:
    with grpc.insecure_channel(bench.server.address) as channel:
        call = channel.unary_unary("/serving.v1.ExperienceStoreService/Attach")
        with pytest.raises(grpc.RpcError) as caught:
            call(b"\xff\xff\xff", timeout=10, metadata=[("authorization", f"Bearer {'a secret of the tests'}")])
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert store.status()["uuid"] == str(bench.owner.uuid)


def test_a_line_that_is_cut_leaves_what_had_come(bench: Bench) -> None:
    """The answer reaches nobody; the same frame on the next line is known."""
    episode = bench.episodes()[0]
    with Line(bench.server.address, "StreamExperience") as line:
        line.send(OPENING, frame(1, write_batch([episode])))
        line.hear()
        line.hear()
    with Line(bench.server.address, "StreamExperience") as line:
        line.send(OPENING, frame(1, write_batch([episode])))
        line.hear()
        (outcome,) = line.hear().outcomes
    assert [ack.duplicate for ack in outcome.acks] == [True]
    assert bench.metric("ratchet_serving_episodes_total", copy="again") == 1


def test_streams_beyond_the_limit_are_refused_and_short_calls_are_not(tmp_path: Path) -> None:
    settings = SERVING.model_copy(update={"max_streams": 1})
    with (
        served(tmp_path, small_config(), settings=settings) as (server, _),
        open_remote(server) as store,
        Line(server.address, "StreamExperience") as first,
    ):
        first.send(OPENING)
        first.hear()
        with Line(server.address, "StreamExperience") as second:
            second.send(OPENING)
            code, detail = second.fail()
        assert (code, "as many as serving.max_streams" in detail) == (grpc.StatusCode.RESOURCE_EXHAUSTED, True)
        assert store.attach("another") > 0


# ---------------------------------------------------------------------------------------------- the client


def test_a_call_longer_than_a_frame_is_several(bench: Bench, store: RemoteStore) -> None:
    episodes = [large(episode, 1 * MIB) for episode in bench.episodes()]
    acks = store.append(episodes)
    assert len({ack.lsn for ack in acks}) == len(episodes)
    kept = store.read([ack.lsn for ack in acks])
    assert [episode.episode_id for episode in kept] == [episode.episode_id for episode in episodes]


def test_an_episode_longer_than_a_frame_is_refused_here(bench: Bench, store: RemoteStore) -> None:
    with pytest.raises(StoreError, match="the store takes at most"):
        store.append([large(bench.episodes()[0], 5 * MIB)])
    assert len(store.append(bench.episodes())) == len(bench.episodes())


def test_a_client_goes_on_with_the_next_server(tmp_path: Path) -> None:
    """The store's process was replaced: the line is made again, the old epoch is over, a new one gets the old LSNs."""
    with served(tmp_path, small_config()) as (server, owner):
        bench = Bench(server, owner)
        port = server.port
        store = open_remote(server)
        episodes = bench.episodes()
        first = store.append(episodes[:2])
    settings = SERVING.model_copy(update={"port": port})
    with store:
        with ThreadPoolExecutor(1) as threads:
            late = threads.submit(store.append, episodes)
            with served(tmp_path, small_config(), settings=settings):
                with pytest.raises(FencedError, match="attach again"):
                    late.result(timeout=30)
                epoch = store.attach(bench.driver.producer)
                again = store.append([replace(episode, producer_epoch=epoch) for episode in episodes])
        assert [(ack.lsn, ack.duplicate) for ack in again[:2]] == [(ack.lsn, True) for ack in first]
        assert not any(ack.duplicate for ack in again[2:])


def test_a_store_that_is_not_there_is_told_at_the_deadline(bench: Bench) -> None:
    with open_remote(bench.server, timeout_s=0.3) as store:
        bench.server.close()
        for call in (lambda: store.append(bench.episodes()), store.ledger):
            with pytest.raises(StoreUnreachableError):
                call()


def test_a_store_that_stops_says_so(bench: Bench, store: RemoteStore) -> None:
    bench.owner.close()
    with pytest.raises(StoreStoppedError):
        store.append(bench.episodes())


def test_who_waits_when_the_client_is_closed_is_told(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    held, entered = threading.Event(), threading.Event()
    append = bench.owner.append

    def slow(episodes: Any) -> Any:
        entered.set()
        held.wait(30)
        return append(episodes)

    monkeypatch.setattr(bench.owner, "append", slow)
    store = open_remote(bench.server)
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(store.append, bench.episodes())
        assert entered.wait(10)
        store.close()
        with pytest.raises(StoreStoppedError):
            waiting.result(timeout=10)
        with pytest.raises(StoreStoppedError):
            store.append(bench.episodes())
        held.set()


def test_a_frame_that_does_not_read_is_told_as_such(bench: Bench, store: RemoteStore) -> None:
    odd: Any = np.array([b"x"])
    with pytest.raises(FormatError, match="do not travel"):
        store.append([replace(bench.episodes()[0], steps=(replace(make_step(), observation=odd),))])
