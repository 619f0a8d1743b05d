"""The index is a convenience: whatever happens to it, the next owner has the same one again."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from threading import Lock
from uuid import UUID, uuid4

import pytest

from buffers.fold import Fold
from buffers.index import Changes, Index
from buffers.indexing import Indexer
from buffers.owner import episode_id
from contracts.records import Episode, Kind, StopReason
from tests.unit.buffers.bench import Bench, Clock, opened
from tests.unit.buffers.samples import SAMPLES

Tables = dict[str, list[tuple[bytes, bytes]]]
MAP_BYTES = 16 << 20
NO_LIMIT = 1 << 60


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
        for lease, group in fold.groups.items():
            entry = index.find_lease(lease)
            assert entry is not None
            assert entry.lsns == group.lsns
            assert entry.disposition == (group.disposition.value if group.disposition else None)
            assert lease in index.find_task(group.task.task_id)
            for member, lsn in group.lsns.items():
                assert index.find_episode(episode_id(str(uuid), lease, member)) == lsn
        assert len(index.find_task("task/3")) == 2
        assert index.find_producer("rollout-0") == (
            bench.epoch,
            bench.seq,
            max(fold.producers["rollout-0"].lsns.values()),
        )
        assert index.find_episode("nobody") is None
        assert index.find_lease(1) is None
        assert index.find_producer("nobody") is None
        assert index.find_task("nobody") == []
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


def use_in_another_boot(folder: Path) -> None:
    (folder / "in-use").write_text(str(uuid4()))


def replace_by_another_stores(folder: Path) -> None:
    shutil.rmtree(folder)
    index = Index(folder, uuid=uuid4(), map_bytes=MAP_BYTES, final=folder)
    index.write(Changes([("foreign", 8)], (), (), 9, 9))
    index.close()


@pytest.mark.parametrize(
    "damage", [delete, overwrite, truncate, empty, use_in_another_boot, replace_by_another_stores],
    ids=lambda damage: damage.__name__,
)  # fmt: skip
def test_a_lost_or_damaged_index_is_built_again(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    uuid, before = make_store(tmp_path)
    assert len(before["episodes"]) == 8
    damage(tmp_path / "index")
    with opened(tmp_path):
        pass
    assert without_progress(read_index(tmp_path, uuid)) == without_progress(before)
    assert not list(tmp_path.glob("index.*"))


def test_an_index_ahead_of_the_log_is_built_again(tmp_path: Path) -> None:
    uuid, before = make_store(tmp_path)
    index = Index(tmp_path / "index", uuid=uuid, map_bytes=MAP_BYTES, final=tmp_path / "index")
    index.write(Changes([("never acknowledged", 1 << 40)], (), (), 1 << 40, 8))
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
        data_end=NO_LIMIT,
        control_end=NO_LIMIT,
    )
    index.close()
    assert (tmp_path / "index" / "data.mdb").stat().st_ino == inode
    assert index.data_lsn > 0


def test_a_full_index_is_given_up_and_built_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    uuid, folder = uuid4(), tmp_path / "index"
    index = Index(folder, uuid=uuid, map_bytes=64 << 10, final=folder)
    indexer = Indexer(index, fold=Fold(), lock=Lock())
    indexer.start()
    sample = SAMPLES[Kind.EPISODE]
    assert isinstance(sample, Episode)
    with indexer.lock:
        for number in range(10_000):
            indexer.note(8 * number, dataclasses.replace(sample, episode_id=str(number)))
    indexer.wake()
    indexer.close()
    assert "the index takes nothing more" in caplog.text
    fresh = Index.open(folder, uuid=uuid, map_bytes=MAP_BYTES, data_end=NO_LIMIT, control_end=NO_LIMIT)
    assert fresh.read_all()["episodes"] == []
    fresh.close()
