"""What every store keeps to, in process, over Ray calls, over gRPC, in shards: contracts.protocols.Store."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actors.cluster import joined
from buffers.inspection import inspect
from buffers.replaying import ReplayReader
from contracts.errors import FencedError, StoreError
from contracts.records import (
    Batch,
    Episode,
    Fault,
    Kind,
    Priority,
    Purpose,
    Served,
    Session,
    Span,
    Step,
    StopReason,
)
from tests.contract.stores import Driver, Open, in_process, over_grpc, over_ray, sharded, small_config
from tests.unit.buffers.samples import STRETCH

OPENERS = {"in process": in_process, "gRPC": over_grpc, "Ray": over_ray, "three shards": sharded}


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with joined(small_config()):
        yield


@pytest.fixture(
    params=[pytest.param(kind, marks=pytest.mark.ray if kind == "Ray" else ()) for kind in OPENERS], scope="module"
)
def open_store(request: pytest.FixtureRequest) -> Open:
    if request.param == "Ray":
        request.getfixturevalue("cluster")
    return OPENERS[request.param]


@pytest.fixture
def driver(open_store: Open, tmp_path: Path) -> Iterator[Driver]:
    with open_store(tmp_path, small_config()) as opened:
        driver = Driver(opened)
        driver.serve(0)
        yield driver


def test_a_step_from_lease_to_version(driver: Driver) -> None:
    leases = driver.lease()
    assert leases
    assert all(lease.missing == tuple(range(lease.task.group_size)) for lease in leases)
    acks = driver.play(leases)
    assert [(ack.duplicate, ack.late) for ack in acks] == [(False, False)] * len(acks)
    assert [ack.lsn for ack in acks] == sorted({ack.lsn for ack in acks})
    lsn, batch = driver.cut(1)
    assert driver.cut(1) == (lsn, batch)
    assert batch.coefficients == {"kl": 0.5}
    driver.serve(1, step=1, batch_lsn=lsn)
    ledger = driver.store.ledger()
    assert ledger.balanced
    assert (ledger.handed, ledger.episodes, ledger.episodes_trained) == (len(leases), len(acks), len(batch.rows))
    assert driver.store.append_batch(driver.request(2, parent_version=1)) is not None


def test_there_is_no_batch_without_groups(driver: Driver) -> None:
    assert driver.store.append_batch(driver.request(1)) is None


def test_a_call_may_wait_for_what_is_not_there_yet(driver: Driver) -> None:
    leases = driver.lease()
    assert driver.lease() == []
    with ThreadPoolExecutor(1) as threads:
        batch = threads.submit(driver.store.append_batch, driver.request(1), wait_s=50)
        driver.play(leases)
        assert batch.result() is not None


def test_episodes_are_read_back_as_they_were(driver: Driver) -> None:
    lease, other, *_ = driver.lease()
    exchange = Step(
        observation=np.array([1, 2], dtype=np.int32),
        action=np.array([3], dtype=np.int32),
        log_probs=np.array([-0.25], dtype=np.float32),
    )
    sent = [
        driver.make(lease, 0, steps=(exchange, exchange), reward_parts={"exact": 1.0}, retries=2, wall_time=1.5),
        driver.make(lease, 1, reward=None, reward_deadline=2e9),
        driver.make(other, 0, steps=(STRETCH,)),
        driver.make(other, 1, reward=None, stop_reason=StopReason.ENV_ERROR),
    ]
    acks = driver.store.append(sent)
    kept = driver.store.read([ack.lsn for ack in reversed(acks)])
    for one, two in zip(kept, reversed(sent), strict=True):
        assert replace(one, steps=()) == replace(two, steps=())
        for step, original in zip(one.steps, two.steps, strict=True):
            assert step.end == original.end
            for name in ("observation", "action", "log_probs", "rewards"):
                found, wanted = getattr(step, name), getattr(original, name)
                np.testing.assert_array_equal(found, wanted)
                assert wanted is None or (found.dtype, found.shape) == (wanted.dtype, wanted.shape)


def test_what_is_not_an_episode_is_not_read(driver: Driver) -> None:
    (lease, *_) = driver.lease()
    with pytest.raises(StoreError, match="is a Task, not an Episode"):
        driver.store.read([lease.lsn])
    assert driver.store.read([]) == []


def test_a_second_copy_is_told_the_first_ones_lsn(driver: Driver) -> None:
    (lease, *_) = driver.lease()
    episode = driver.make(lease, 0)
    (first,) = driver.store.append([episode])
    (again,) = driver.store.append([episode])
    assert (again.lsn, again.duplicate) == (first.lsn, True)
    with pytest.raises(StoreError, match="which was another record's"):
        driver.store.append([replace(driver.make(lease, 1), seq=episode.seq)])
    assert driver.store.ledger().episodes == 1
    (other,) = driver.store.append([driver.make(lease, 1)])
    assert not other.duplicate


def test_an_older_epoch_is_fenced(driver: Driver) -> None:
    (lease, *_) = driver.lease(1)
    episode = driver.make(lease, 0)
    newer = driver.store.attach(driver.producer)
    assert newer > driver.epoch
    with pytest.raises(FencedError, match="attach again"):
        driver.store.append([episode])
    with pytest.raises(FencedError, match="attach again"):
        driver.lease()
    assert driver.store.ledger().episodes == 0
    (ack,) = driver.store.append([replace(episode, producer_epoch=newer)])
    assert (ack.duplicate, ack.late) == (False, True)


Spoil = Callable[[Episode], dict[str, Any]]
DOUBLE: Any = np.float64


def respell(name: str, values: Any) -> Spoil:
    """Another array in the only step."""
    return lambda episode: {"steps": (replace(episode.steps[0], **{name: values}),)}


INVALID: dict[str, tuple[Spoil, Fault]] = {
    "a log-probability": (respell("log_probs", np.array([0, np.nan, 0], dtype=np.float32)), Fault.LOG_PROB),
    "a type": (respell("log_probs", np.zeros(3, dtype=DOUBLE)), Fault.DTYPE),
    "a shape": (respell("action", np.zeros((1, 3), dtype=np.int32)), Fault.SHAPE),
    "a length": (respell("log_probs", np.zeros(2, dtype=np.float32)), Fault.SHAPE),
    "a number for a stretch": (
        lambda _: {"steps": (replace(STRETCH, action=np.array(3, dtype=np.int32)),)},
        Fault.SHAPE,
    ),
    "a reward": (lambda _: {"reward": float("inf")}, Fault.REWARD),
    "an environment": (lambda _: {"environment": "another"}, Fault.ENVIRONMENT),
    "a version": (lambda _: {"spans": (Span(start=0, version=7),)}, Fault.VERSION),
    "a lease": (lambda _: {"lease": 3}, Fault.LEASE),
    "no step": (lambda _: {"steps": ()}, Fault.EMPTY),
    "a purpose": (lambda _: {"purpose": Purpose.EVALUATE}, Fault.PURPOSE),
}


@pytest.mark.parametrize(("spoil", "fault"), INVALID.values(), ids=INVALID.keys())
def test_what_no_learner_may_read_is_quarantined(driver: Driver, spoil: Spoil, fault: Fault) -> None:
    (lease, *_) = driver.lease()
    bad = driver.make(lease, 1)
    good, quarantined = driver.store.append([driver.make(lease, 0), replace(bad, **spoil(bad))])
    assert (good.fault, quarantined.fault) == (None, fault)
    ledger = driver.store.ledger()
    assert (ledger.episodes, ledger.quarantined) == (1, {fault.value: 1})
    with pytest.raises(StoreError, match="is a Quarantined, not an Episode"):
        driver.store.read([quarantined.lsn])


@pytest.mark.parametrize("rounds", [1, pytest.param(25, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ["in process", "gRPC", pytest.param("Ray", marks=pytest.mark.ray)])
def test_of_what_is_quarantined_nothing_is_sampled(
    request: pytest.FixtureRequest, tmp_path: Path, kind: str, rounds: int
) -> None:
    """Every kind of bad record among good ones: batches and samplers have the good ones, the log keeps the reasons."""
    if kind == "Ray":
        request.getfixturevalue("cluster")
    open_store = OPENERS[kind]
    config = small_config(max_staleness=99, steps=10_000)
    bad: dict[int, Fault] = {}
    sampled: set[int] = set()
    with open_store(tmp_path, config) as opened:
        driver, step = Driver(opened), 0
        driver.serve(0)
        for _ in range(rounds):
            leases = driver.lease(2 * len(INVALID))
            for lease, (spoil, fault) in zip(leases, INVALID.values(), strict=False):
                episode = driver.make(lease, 1)
                good, wrong = driver.store.append([driver.make(lease, 0), replace(episode, **spoil(episode))])
                assert (good.fault, wrong.fault) == (None, fault)
                bad[wrong.lsn] = fault
            driver.play(leases[len(INVALID) :])
            while (cut := driver.store.append_batch(driver.request(step + 1))) is not None:
                step += 1
                sampled |= {row.episode_lsn for row in cut[1].rows}
        ledger = driver.store.ledger()
    assert ledger.balanced
    assert ledger.quarantined == Counter(fault.value for fault in bad.values())
    with ReplayReader.open(tmp_path / "store") as reader:
        reader.set_priorities(np.arange(reader.num_rows), np.ones(reader.num_rows, dtype=np.int64))
        for draw in (reader.draw_uniform(5_000, seed=1), reader.draw_by_priority(5_000, seed=1, beta=0.5)):
            assert len(set(draw.lsns.tolist())) > rounds * len(INVALID)
            sampled |= set(draw.lsns.tolist())
    assert not sampled & bad.keys()
    contents = inspect(tmp_path / "store", newest=len(bad))
    assert {lsn: record.fault for lsn, record in contents.quarantined} == bad
    assert all(record.detail for _, record in contents.quarantined)
    print(f"{len(bad)} bad of {len(set(bad.values()))} faults, {len(sampled)} good ones sampled")


def test_an_older_learner_is_fenced(driver: Driver) -> None:
    driver.store.open_session(Session(role="learner", epoch=0))
    with pytest.raises(FencedError):
        driver.store.decide(Served(version=0, gap=0.0), driver.session)
    with pytest.raises(FencedError):
        driver.store.append_batch(driver.request(1))


def test_a_learner_says_what_is_to_be_learned_from_again(driver: Driver) -> None:
    """PRIORITY is kept with the experience, and fenced like a decision."""
    (lease, *_) = driver.lease()
    said = Priority(leases=(lease.lsn,), priorities=(7,))
    assert driver.store.decide(said, driver.session) > lease.lsn
    assert driver.store.decisions(kinds=[Kind.PRIORITY]) == []
    with pytest.raises(StoreError, match="is no lease"):
        driver.store.decide(replace(said, leases=(lease.lsn + 8,)), driver.session)
    with pytest.raises(FencedError):
        driver.store.decide(said, driver.session - 1)


def test_decisions_come_in_order_from_where_one_asks(driver: Driver) -> None:
    driver.play(driver.lease())
    lsn, batch = driver.cut(1)
    every = driver.store.decisions()
    assert [at for at, _ in every] == sorted(at for at, _ in every)
    assert driver.store.decisions(kinds=[Kind.BATCH]) == [(lsn, batch)]
    assert isinstance(batch, Batch)
    assert driver.store.decisions(start=lsn) == [(at, record) for at, record in every if at >= lsn]
    assert [record.KIND for _, record in every][:2] == [Kind.SESSION, Kind.SESSION]


def test_producers_append_side_by_side(driver: Driver) -> None:
    leases = driver.lease()
    episodes = [driver.make(lease, member) for lease in leases for member in lease.missing]
    with ThreadPoolExecutor(len(episodes)) as threads:
        acks = list(threads.map(lambda episode: driver.store.append([episode])[0], episodes))
    assert len({ack.lsn for ack in acks}) == len(episodes)
    assert [kept.episode_id for kept in driver.store.read([ack.lsn for ack in acks])] == [
        episode.episode_id for episode in episodes
    ]


def test_what_is_acknowledged_outlives_its_owner(open_store: Open, tmp_path: Path) -> None:
    with open_store(tmp_path, small_config()) as opened:
        driver = Driver(opened)
        driver.serve(0)
        leases = driver.lease(1)
        episodes = [driver.make(leases[0], member) for member in leases[0].missing]
        acks = driver.store.append(episodes)
    with (sharded if open_store is sharded else in_process)(tmp_path, small_config()) as opened:
        driver = Driver(opened)
        again = driver.store.append([replace(episode, producer_epoch=driver.epoch) for episode in episodes])
        assert [(ack.lsn, ack.duplicate) for ack in again] == [(ack.lsn, True) for ack in acks]
