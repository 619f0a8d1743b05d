"""A disk that is full or broken at any one operation, or from one on: typed refusals, nothing lost, reads go on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest

from buffers.log import LogReader, LogWriter, claim, create_store, read_identity
from buffers.owner import StoreOwner
from contracts.errors import StoreError, StoreFullError, StoreIdentityError, StoreStoppedError
from tests.crash.disk import BROKEN, FULL, SYNCS, TAKES_SPACE, Fault, Name, unsynced, watched
from tests.unit.buffers.bench import make_step, name_task, opened, small_config
from tests.unit.buffers.log.logs import open_log

pytestmark = pytest.mark.timeout(300)  # thousands of small writes: a busy disk takes its time
T = TypeVar("T")
SEGMENT_BYTES = 4096


def attempt(act: Callable[[], T], errors: list[StoreError]) -> T | None:
    """What `act` returns; None where the store refused in its own words. Any other error is a fault."""
    try:
        return act()
    except StoreError as error:
        errors.append(error)
        return None


class Life:
    """A store with a data log of small segments, used until it stops; what was acknowledged, and what was refused."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.kept, self.errors = folder, dict[int, bytes](), list[StoreError]()
        self.num_kept = 0  # on the faulty disk

    def run(self) -> None:
        if not (self.folder / "store.json").exists():
            attempt(lambda: create_store(self.folder), self.errors)
        held = attempt(lambda: claim(self.folder, uuid=read_identity(self.folder)), self.errors)
        if held is None:
            return
        log = self.folder / "data"
        is_new = not list(log.glob("*.seg"))
        writer = attempt(
            lambda: LogWriter.open(
                log,
                store_uuid=held.uuid,
                epoch=held.epoch,
                create=is_new,
                segment_bytes=SEGMENT_BYTES,
                still_owner=held.still_owner,
            ),
            self.errors,
        )
        if writer is not None:
            for number in range(8):
                payload = b"%d " % held.epoch + bytes([number]) * 900
                lsns = attempt(lambda payload=payload: writer.append([(2, payload)]), self.errors)  # type: ignore[misc]
                self.kept |= dict.fromkeys(lsns or (), payload)
            if self.kept:  # reads go on, whatever happened
                assert {frame.lsn: frame.payload for frame in LogReader(log).scan()}.items() >= self.kept.items()
            attempt(writer.close, self.errors)
        held.release()


def run_with(fault: Fault, folder: Path) -> Life:
    """One life on a faulty disk, then one on a sound one, which finds all that was kept and keeps all."""
    life = Life(folder)
    with unsynced(), watched(folder.parent, before=fault):
        life.run()
    if fault.hit is None:
        return life
    refused, life.errors, life.num_kept = life.errors, [], len(life.kept)
    with unsynced():
        life.run()
    assert life.errors == []
    assert len(life.kept) == life.num_kept + 8
    life.errors = refused
    return life


def try_each(make: Callable[[int], Fault], folder: Path) -> list[tuple[Fault, Life]]:
    """A store for each place at which the disk may fail, until there is none left."""
    tried = []
    for nth in range(1000):
        fault = make(nth)
        life = run_with(fault, folder / str(nth) / "store")
        if fault.hit is None:
            break
        tried.append((fault, life))
    assert len(tried) > 8
    return tried


def test_no_room_at_any_operation_refuses_that_call_alone(tmp_path: Path) -> None:
    for fault, life in try_each(lambda nth: Fault(FULL, TAKES_SPACE, nth=nth), tmp_path):
        assert fault.hit is not None
        if fault.hit.path.name == "watermark":  # written over in place: that it finds no room is a broken disk
            assert all(isinstance(error, StoreFullError | StoreStoppedError) for error in life.errors)
        elif life.num_kept:
            assert [type(error) for error in life.errors] == [StoreFullError], fault.hit
            assert life.num_kept == 7
        else:
            assert isinstance(life.errors[0], StoreFullError), fault.hit


def test_a_disk_that_is_full_from_any_moment_on_refuses_and_loses_nothing(tmp_path: Path) -> None:
    def fill(nth: int) -> Fault:
        return Fault(FULL, TAKES_SPACE, nth=nth, lasting=True, spare="watermark")

    for fault, life in try_each(fill, tmp_path):
        assert isinstance(life.errors[0], StoreFullError), fault.hit
        assert all(isinstance(error, StoreFullError | StoreIdentityError) for error in life.errors)


@pytest.mark.parametrize("names", [SYNCS, ("write", "truncate", "allocate")])
def test_a_disk_that_fails_at_any_operation_stops_the_owner_for_good(tmp_path: Path, names: tuple[Name, ...]) -> None:
    for fault, life in try_each(lambda nth: Fault(BROKEN, names, nth=nth), tmp_path):
        assert all(isinstance(error, StoreStoppedError | StoreIdentityError) for error in life.errors), fault.hit
        assert life.errors or life.num_kept == 8  # it was closing, and had nothing left to promise


def test_a_name_that_cannot_be_synced_stops_the_owner(tmp_path: Path) -> None:
    """Even for want of room: the new segment may have its name, so the old one may not go on."""
    folder = tmp_path / "data"
    writer = open_log(folder, create=True)
    kept = [writer.append([(2, bytes(9000))])[0]]
    with watched(tmp_path, before=Fault(FULL, ("sync_folder",))), pytest.raises(StoreStoppedError):
        writer.append([(2, bytes(9000))])
    with pytest.raises(StoreStoppedError):
        writer.append([(2, b"small")])
    writer.close()
    open_log(folder, epoch=2).close()
    assert [frame.lsn for frame in LogReader(folder).scan()] == kept


@pytest.mark.parametrize("stride", [9, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("number", [FULL, BROKEN])
def test_a_store_refuses_in_its_own_words_wherever_the_disk_fails_as_it_opens(
    tmp_path: Path, number: int, stride: int
) -> None:
    """A sync that fails leaves what it was to keep unknown, whatever the reason: it stops the owner, for want of room
    too."""
    num_refused = 0
    for nth in range(0, 1000, stride):
        folder = tmp_path / str(nth) / "store"
        fault = Fault(number, (*TAKES_SPACE, *SYNCS), nth=nth)
        error = None
        with unsynced(), watched(folder.parent, before=fault):
            try:
                StoreOwner.open(folder, config=small_config(), source=name_task, create=True).close()
            except StoreError as refusal:
                error = refusal
        if fault.hit is None:
            break
        wanted: tuple[type[StoreError], ...] = (StoreFullError,) if number == FULL else (StoreStoppedError,)
        if fault.hit.name in SYNCS or fault.hit.path.name == "watermark":  # which is written over in place
            wanted = (*wanted, StoreStoppedError)
        assert error is None or isinstance(error, wanted), fault.hit
        num_refused += 1
        with unsynced(), opened(folder) as bench:  # the next one takes it as it is
            bench.serve(0)
            assert len(bench.play(bench.lease())) > 0
    assert num_refused > 40 // stride


def test_decisions_are_written_while_data_is_full(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    full = Fault(FULL, TAKES_SPACE, lasting=True, where="data/", spare="watermark")
    with opened(folder, config=small_config(max_staleness=99)) as bench:
        bench.serve(0)
        first, second, *others = bench.lease()
        acks = bench.play([first, second])
        with watched(tmp_path, before=full):
            for lease in others:
                with pytest.raises(StoreFullError):
                    bench.play([lease], steps=(make_step(20_000),))
            lsn, batch = bench.cut(1)
            bench.decide_version(1, step=1, batch_lsn=lsn)
            assert [row.episode_lsn for row in batch.rows] == [ack.lsn for ack in acks]
            assert bench.owner.read([acks[0].lsn])[0].lease == first.lsn
        bench.play(others[:1])  # there is room again
        ledger = bench.owner.ledger()
        assert (ledger.ended["trained"], ledger.ready, ledger.balanced) == (2, 1, True)
    assert full.hit is not None
    with opened(folder) as bench:
        assert bench.owner.ledger().episodes == 6


@pytest.mark.parametrize("log", ["data", "control"])
def test_after_a_failed_sync_a_store_takes_nothing_more_and_reads_on(tmp_path: Path, log: str) -> None:
    folder = tmp_path / "store"
    with opened(folder) as bench:
        bench.serve(0)
        lease, *others = bench.lease()
        acks = bench.play([lease])
        with watched(tmp_path, before=Fault(BROKEN, SYNCS, where=f"{log}/")), pytest.raises(StoreStoppedError):
            bench.play(others[:1]) if log == "data" else bench.decide_version(1, step=1)
        with pytest.raises(StoreStoppedError):  # the disk is well again; what it holds is still unknown
            bench.play(others[1:2]) if log == "data" else bench.decide_version(1, step=1)
        assert [episode.lease for episode in bench.owner.read([ack.lsn for ack in acks])] == [lease.lsn] * 2
    with opened(folder) as bench:
        assert bench.owner.ledger().balanced
        assert [episode.lease for episode in bench.owner.read([ack.lsn for ack in acks])] == [lease.lsn] * 2
