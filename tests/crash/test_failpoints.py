"""A kill at each step of what is done to a store: what was promised stays, and the step can be done again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from buffers import snapshots
from buffers.log import LogReader, verify_chain
from buffers.view import StoreView
from tests.crash.failpoints import kill_at_each_step
from tests.crash.steps import ACTIONS, make_runs, try_steps
from tests.crash.store import make_run_folder
from tests.unit.buffers.bench import opened
from tests.unit.buffers.log.logs import flip_bit, open_log, read_records

pytestmark = pytest.mark.timeout(300)  # thousands of small writes: a busy disk takes its time
STRIDES = [5, pytest.param(1, marks=pytest.mark.slow)]
BIG = 9000  # two records of this size fill a segment of the tests' logs


def records(number: int, *, size: int = 0) -> list[tuple[int, bytes]]:
    return [(64, (b"%d-%d" % (number, part)).ljust(size)) for part in range(2)]


def check_log(folder: Path, *, num_kept: int, size: int = 0) -> None:
    """The first `num_kept` appends are there, the next one is whole or absent, and the log goes on."""
    writer = open_log(folder, epoch=90, chained=True, strict=True)
    writer.append([(64, b"goes on")])
    writer.close()
    *found, last = [payload for _, _, payload in read_records(folder)]
    expected = [payload for number in range(num_kept + 1) for _, payload in records(number, size=size)]
    assert last == b"goes on"
    assert found in (expected, expected[:-2])
    verify_chain(LogReader(folder))
    assert not list(folder.glob(".*.tmp"))


@pytest.mark.parametrize("size", [0, BIG])
def test_a_kill_at_each_step_of_a_rotation(tmp_path: Path, size: int) -> None:
    """Asked for, and because a segment is full."""

    def prepare(place: Path) -> Callable[[], object]:
        writer = open_log(place / "control", create=True, chained=True)
        writer.append(records(0, size=size))
        if not size:
            writer.rotate()
        return lambda: writer.append(records(1, size=size))

    steps = kill_at_each_step(prepare, lambda place, _: check_log(place / "control", num_kept=1, size=size), tmp_path)
    assert steps > 8


def test_a_kill_at_each_step_of_a_recovery(tmp_path: Path) -> None:
    """Of a log with a tear in its last segment: however often it is killed, nothing but the tear goes."""

    def prepare(place: Path) -> Callable[[], object]:
        folder = place / "control"
        writer = open_log(folder, create=True, chained=True)
        writer.append(records(0, size=BIG))
        writer.append(records(1))
        torn = writer.append([(64, b"torn" * 9)], durable=False)[0]
        crashed = {path: path.read_bytes() for path in folder.iterdir()}
        writer.close()
        for path, data in crashed.items():
            path.write_bytes(data)
        flip_bit(folder, torn + 85)
        return lambda: open_log(folder, epoch=2, chained=True, strict=True)

    def check(place: Path, _: bool) -> None:
        folder = place / "control"
        expected = [*records(0, size=BIG), *records(1)]
        writer = open_log(folder, epoch=90, chained=True, strict=True)
        writer.close()
        assert [(kind, payload) for _, kind, payload in read_records(folder)] == expected
        assert len(list(folder.glob("*.torn"))) >= 1
        verify_chain(LogReader(folder))

    assert kill_at_each_step(prepare, check, tmp_path) > 8


@pytest.mark.parametrize("stride", STRIDES)
def test_a_kill_at_each_step_of_a_store_from_its_making_to_its_end(tmp_path: Path, stride: int) -> None:
    def prepare(place: Path) -> Callable[[], object]:
        return lambda: use(place / "store")

    def use(folder: Path) -> None:
        with opened(folder) as bench:
            bench.serve(0)
            bench.play(bench.lease())
            bench.cut(1)

    def check(place: Path, done: bool) -> None:
        with opened(place / "store") as bench:
            ledger, status = bench.owner.ledger(), bench.owner.status()
            assert ledger.balanced
            assert (status["doubled"], status["unresolved"]) == (0, 0)
            assert bench.owner.epoch <= 2
            assert not done or (ledger.episodes, status["batched"]) == (8, 2)
            bench.owner.attach("another")

    assert kill_at_each_step(prepare, check, tmp_path, stride=stride) > 40 // stride


@pytest.mark.parametrize("stride", STRIDES)
def test_a_kill_at_each_step_of_a_snapshot(tmp_path: Path, stride: int) -> None:
    def prepare(place: Path) -> Callable[[], object]:
        run_folder = make_run_folder(place, number=0)
        with opened(run_folder / "store") as bench:
            bench.serve(0)
            bench.play(bench.lease())
        return lambda: snapshots.create(run_folder, "one")

    def check(place: Path, done: bool) -> None:
        run_folder = place / "run-0"
        known = [snapshot.name for snapshot in snapshots.list_all(run_folder)]
        assert known in ([], ["one"])
        assert known or not done
        if not known:  # half of one is in nobody's way
            snapshots.create(run_folder, "one")
        snapshots.verify(run_folder / "snapshots" / "one")
        for folder in (run_folder / "snapshots" / "one" / "store", run_folder / "store"):
            assert StoreView.open(folder).ledger().episodes == 8

    assert kill_at_each_step(prepare, check, tmp_path, stride=stride) > 20 // stride


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    return make_runs(tmp_path_factory.mktemp("runs"))


@pytest.mark.parametrize("stride", [23, pytest.param(1, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])])
@pytest.mark.parametrize("name", ACTIONS)
def test_a_kill_at_each_step_of_an_action(tmp_path: Path, runs: dict[bool, Path], name: str, stride: int) -> None:
    """What was there before is there and whole, and the action can be done again."""
    assert try_steps(name, runs, tmp_path, stride=stride) >= 10 // stride
