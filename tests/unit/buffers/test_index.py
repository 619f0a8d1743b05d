"""The index is a convenience: whatever happens to it, the next owner has the same contents again."""

from __future__ import annotations

import dataclasses
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from threading import Lock
from uuid import UUID, uuid4

import lmdb
import pytest
from hypothesis import given
from hypothesis import strategies as st

from buffers.fold import FIRST_CONTROL_KIND, Fold
from buffers.folding import load, save_state
from buffers.index import Changes, Index
from buffers.indexing import Indexer
from buffers.log.recovery import examine
from buffers.view import StoreView
from contracts.records import Closed, Disposition, Fault, Kind, Priority, StopReason, Task
from tests.unit.buffers.bench import Bench, Clock, opened
from tests.unit.buffers.samples import SAMPLES
from tests.unit.buffers.test_fold import History, histories

Tables = dict[str, list[tuple[bytes, bytes]]]
MAP_BYTES = 16 << 20


def fill(bench: Bench, clock: Clock) -> None:
    """Every kind of ending that the index tells apart."""
    bench.serve(0)
    first, second, third, fourth = bench.lease()
    bench.play([first, second])
    bench.play([third], stop_reason=StopReason.ENV_ERROR, reward=None)
    lsn, _ = bench.cut(1)
    bench.serve(1, step=1, batch_lsn=lsn)
    clock.now_s = 61.0
    (again, *_) = bench.lease()
    assert again.task.position == fourth.task.position
    bench.owner.append([bench.make(again, 1), bench.make(fourth, 0)])


def read_index(folder: Path, uuid: UUID) -> Tables:
    index = Index(folder / "index", uuid=uuid, map_bytes=MAP_BYTES, final=folder / "index")
    try:
        return index.read_all()
    finally:
        index.close()


def make_store(folder: Path) -> tuple[UUID, Tables]:
    """A store with some history, closed; its uuid and its index."""
    clock = Clock()
    with opened(folder, clock=clock) as bench:
        fill(bench, clock)
        uuid = bench.owner.uuid
    return uuid, read_index(folder, uuid)


def without_progress(tables: Tables) -> Tables:
    return {name: pairs for name, pairs in tables.items() if name != "meta"}


def test_the_index_finds_what_the_log_holds(tmp_path: Path) -> None:
    clock = Clock()
    with opened(tmp_path, clock=clock) as bench:
        fill(bench, clock)
        status, fold, uuid = bench.owner.status(), bench.owner._state.fold, bench.owner.uuid
    assert status["doubled"] == 0
    index = Index(tmp_path / "index", uuid=uuid, map_bytes=MAP_BYTES, final=tmp_path / "index")
    try:
        assert (index.data_lsn, index.control_lsn) == (fold.data_end, fold.control_end)
        kept = load(index)
        assert kept == refold(tmp_path)
        for lease, group in kept.groups.items():
            assert lease in index.find_task(group.task.task_id)
        assert len(index.find_task("task/3")) == 2
        assert kept.producers["rollout-0"].newest == bench.seq
        assert (kept.groups.get(1), kept.producers.get("nobody")) == (None, None)
        assert index.find_task("nobody") == []
        tried = sorted(lsn for group in kept.groups.values() for lsn in group.lsns.values())
        rewarded = [one.reward is not None for one in StoreView.open(tmp_path).episodes(tried)]
        rows = struct.unpack(f"<{sum(rewarded)}q", b"".join(block for _, block in index.read_all()["rows"]))
        assert list(rows) == [lsn for lsn, has_reward in zip(tried, rewarded, strict=True) if has_reward]
    finally:
        index.close()


def delete(folder: Path) -> None:
    shutil.rmtree(folder)


def overwrite(folder: Path) -> None:
    data = folder / "data.mdb"
    data.write_bytes(b"\xa5" * data.stat().st_size)


def truncate(folder: Path) -> None:
    data = folder / "data.mdb"
    with data.open("r+b") as file:
        file.truncate(2 * 4096)  # both meta pages survive, the tree does not


def empty(folder: Path) -> None:
    (folder / "data.mdb").write_bytes(b"")


def damage_values(folder: Path) -> None:
    """One bit of every task's name in a leaf: the tree is whole, the values are not."""
    data = folder / "data.mdb"
    data.write_bytes(data.read_bytes().replace(b"task/", b"tasj/"))


def take_entries_out(folder: Path) -> None:
    env = lmdb.open(str(folder), max_dbs=16)
    table = env.open_db(b"groups")
    with env.begin(db=table, write=True) as transaction, transaction.cursor() as cursor:
        assert cursor.first()
        assert cursor.delete()
    env.close()


def replace_by_another_stores(folder: Path) -> None:
    shutil.rmtree(folder)
    index = Index(folder, uuid=uuid4(), map_bytes=MAP_BYTES, final=folder)
    index.write(Changes(state=save_state(Fold()), data_lsn=9, control_lsn=9, tasks=[("foreign", 8)]))
    index.close()


@pytest.mark.parametrize(
    "damage", [delete, overwrite, truncate, empty, damage_values, take_entries_out, replace_by_another_stores],
    ids=lambda damage: damage.__name__,
)  # fmt: skip
def test_a_lost_or_damaged_index_is_built_again(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    uuid, before = make_store(tmp_path)
    assert len(before["groups"]) > 4
    damage(tmp_path / "index")
    with opened(tmp_path):
        pass
    assert without_progress(read_index(tmp_path, uuid)) == without_progress(before)
    assert not list(tmp_path.glob("index.*"))


@pytest.mark.parametrize("ahead", [1, 1 << 40], ids=["by a byte", "far"])
def test_an_index_ahead_of_the_log_is_built_again(tmp_path: Path, ahead: int) -> None:
    """By a byte: less than the frame with which the next owner begins, and which must not hide it."""
    uuid, before = make_store(tmp_path)
    index = Index(tmp_path / "index", uuid=uuid, map_bytes=MAP_BYTES, final=tmp_path / "index")
    lsn = ahead + examine(tmp_path / "data", uuid=uuid, log_name="data", chained=False).end_lsn
    index.write(Changes(state=index.state, data_lsn=lsn, control_lsn=8, tasks=[("never there", lsn)]))
    index.close()
    with opened(tmp_path):
        pass
    assert without_progress(read_index(tmp_path, uuid)) == without_progress(before)


def test_an_index_behind_the_log_catches_up(tmp_path: Path) -> None:
    clock = Clock()
    with opened(tmp_path, clock=clock) as bench:
        bench.serve(0)
        bench.play(bench.lease(max_tasks=2))
        uuid = bench.owner.uuid
    shutil.copytree(tmp_path / "index", tmp_path / "old")
    with opened(tmp_path, clock=clock) as bench:
        bench.serve(0)
        bench.play(bench.lease())
        bench.cut(1)
        bench.decide_version(1, step=1, batch_lsn=bench.owner.decisions()[-1][0])
    current = read_index(tmp_path, uuid)
    shutil.rmtree(tmp_path / "index")
    (tmp_path / "old").rename(tmp_path / "index")
    with opened(tmp_path):
        pass
    assert without_progress(read_index(tmp_path, uuid)) == without_progress(current)


def test_a_trusted_index_is_kept(tmp_path: Path) -> None:
    uuid, _ = make_store(tmp_path)
    inode = (tmp_path / "index" / "data.mdb").stat().st_ino
    index = Index.open(
        tmp_path / "index",
        uuid=uuid,
        map_bytes=MAP_BYTES,
    )
    index.close()
    assert (tmp_path / "index" / "data.mdb").stat().st_ino == inode
    assert index.data_lsn > 0


def test_a_full_index_is_given_up_and_memory_keeps_the_rest(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "index"
    index = Index(folder, uuid=uuid4(), map_bytes=256 << 10, final=folder)
    indexer = Indexer(index, lock=Lock(), sync=at_once)
    indexer.start()
    whole, sample = Fold(), SAMPLES[Kind.TASK]
    assert isinstance(sample, Task)
    for number in range(1, 3_001):
        record = dataclasses.replace(sample, position=number, task_id=f"task/{number}")
        for fold in (indexer.fold, whole):
            fold.apply(8 * number, record)
            fold.apply(8 * number, Closed(leases=(8 * number,), disposition=Disposition.STALE, reason="test"))
        indexer.note(8 * number, record)
        if number % 100 == 0:
            indexer.flush()
    assert "the index takes nothing more" in caplog.text
    assert 100 <= indexer.fold.groups.num_near < 3_000
    assert indexer.fold == whole
    indexer.close()
    again = Index.open(folder, uuid=index.uuid, map_bytes=MAP_BYTES)
    assert 0 < again.data_lsn < whole.data_end, "what went in before it was full is good"
    again.close()


def test_what_no_index_can_hold_ends_it_aloud_and_not_the_store(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Admission refuses such a record; here it is in the log all the same, as after a fault of ours."""
    with opened(tmp_path) as bench:
        bench.serve(0)
        first, second, *_ = bench.lease()
        bench.play([first])
        state = bench.owner._state
        state.index.flush()
        with state.lock:
            future = state.data.submit([Priority(leases=(-5,), priorities=(1,))])
        state.finish(future)
        state.index.flush()
        assert "the index takes nothing more" in caplog.text
        held = state.index.data_lsn
        bench.play([second])
        state.index.flush()
        assert state.index.data_lsn == held, "no later cut is written, which would lack this one"
        state.index._thread.join(timeout=30)
        ledger = bench.owner.ledger()
        assert ledger.episodes == 4
    for _ in range(2):
        with opened(tmp_path) as bench:
            assert bench.owner.ledger() == ledger
            assert StoreView.open(tmp_path).ledger() == ledger


def at_once(lsn: int) -> int:
    """A log in which everything is durable."""
    return lsn


@given(histories(), st.data())
def test_a_fold_that_was_saved_and_loaded_goes_on_as_if_nothing_had_happened(
    tmp_path_factory: pytest.TempPathFactory, history: History, data: st.DataObject
) -> None:
    """Cuts wherever they may fall, the memory emptied at each, and some of them followed by a crash."""
    folder = tmp_path_factory.mktemp("index")
    uuid, whole = uuid4(), Fold()
    indexer = start(folder, uuid)
    for number, (lsn, record) in enumerate(history.order):
        whole.apply(lsn, record)
        indexer.recall(lsn, record)
        what = data.draw(st.sampled_from(["go on", "go on", "write", "crash"]))
        if what == "write":
            indexer.flush()
            assert indexer.fold == whole
        elif what == "crash":  # what was not written is folded again
            indexer._index.close()
            indexer = start(folder, uuid)
            for at, one in history.order[: number + 1]:
                is_data = one.KIND < FIRST_CONTROL_KIND
                if at >= (indexer.fold.data_end if is_data else indexer.fold.control_end):
                    indexer.recall(at, one)
    assert indexer.fold == whole == history.fold
    indexer.flush()
    assert indexer.fold == whole
    assert indexer.fold.groups.num_near == sum(map(len, whole.stages.values())), "what has ended is not in memory"
    indexer._index.close()
    shutil.rmtree(folder)


def start(folder: Path, uuid: UUID) -> Indexer:
    return Indexer(Index(folder, uuid=uuid, map_bytes=MAP_BYTES, final=folder), lock=Lock(), sync=at_once)


def test_memory_holds_what_is_in_flight_and_nothing_else(tmp_path: Path) -> None:
    with opened(tmp_path) as bench:
        fold = bench.owner._state.fold
        bench.serve(0)
        for step in range(1, 31):
            bench.play(bench.lease(), version=step - 1)
            lsn, _ = bench.cut(step, parent_version=step - 1)
            bench.serve(step, step=step, batch_lsn=lsn)
        bench.owner._state.index.flush()
        assert fold.num_handed >= 60
        assert fold.groups.num_near <= fold.num_outstanding
        assert max(shelf.num_near for shelf in fold.shelves.values()) <= 4
        assert len(fold.positions) <= fold.num_outstanding
        assert fold == refold(tmp_path)


def test_a_late_episode_finds_its_lease_again(tmp_path: Path) -> None:
    """After its lease has left memory, and another owner has come: a second copy, a late one, and a false one."""
    clock = Clock()
    with opened(tmp_path, clock=clock) as bench:
        bench.serve(0)
        first, second, *_ = bench.lease()
        (kept, _) = bench.play([first])
        bench.owner.append([bench.make(second, 0)])
        clock.now_s = 61.0
        bench.lease()
    with opened(tmp_path, clock=clock) as bench:
        fold = bench.owner._state.fold
        bench.owner._state.index.flush()
        ended = [group for group in fold.groups.values() if group.disposition is Disposition.ABANDONED]
        assert second.lsn in {group.lease for group in ended}
        (again,) = bench.owner.append([bench.make(first, 0)])
        assert (again.lsn, again.duplicate) == (kept.lsn, True)
        (late,) = bench.owner.append([bench.make(second, 1)])
        assert late.late
        bench.owner._state.index.flush()
        assert fold.groups[second.lsn].num_late == 1
        (strange,) = bench.owner.append([dataclasses.replace(bench.make(second, 1), lease=4096)])
        assert strange.fault is Fault.LEASE
        assert fold == refold(tmp_path)


def refold(folder: Path) -> Fold:
    """Both logs, folded whole, without the index."""
    return StoreView.open(folder).fold
