"""A view sees what is durable, of a live store and of a dead one, and owns nothing."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from buffers import index as index_module
from buffers.fold import Fold
from buffers.index import IndexView
from buffers.log.reader import LogReader
from buffers.reading import Records
from buffers.view import StoreView
from contracts.errors import StoreError, StoreIdentityError
from contracts.records import Kind, Record
from tests.unit.buffers.bench import opened
from tests.unit.buffers.test_retention import bounded, fill
from tests.unit.buffers.test_snapshots import make_run


def test_a_view_of_a_live_store_follows_it(tmp_path: Path) -> None:
    with opened(tmp_path) as bench:
        view = StoreView.open(tmp_path, uuid=str(bench.owner.uuid))
        assert view.ledger().handed == 0
        bench.serve(0)
        acks = bench.play(bench.lease())
        bench.cut(1)
        assert view.ledger().handed == 0
        view.refresh()
        assert view.ledger() == bench.owner.ledger()
        assert view.fold == bench.owner._state.fold
        assert view.decisions() == bench.owner.decisions()
        assert [episode.member for episode in view.episodes([ack.lsn for ack in acks[:2]])] == [0, 1]
        view.refresh()
        assert view.fold == bench.owner._state.fold


def test_a_view_of_a_dead_store_is_its_last_state(tmp_path: Path) -> None:
    with opened(tmp_path) as bench:
        bench.serve(0)
        bench.play(bench.lease())
        ledger = bench.owner.ledger()
    before = sorted(path.name for path in tmp_path.rglob("*"))
    with StoreView.open(tmp_path) as view:
        assert view.ledger() == ledger
        assert [record.KIND for _, record in view.decisions(kinds=[Kind.SERVED])] == [Kind.SERVED]
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


def test_a_view_of_no_store_or_another_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreIdentityError, match="no store"):
        StoreView.open(tmp_path / "nothing")
    with opened(tmp_path / "store"):
        pass
    with pytest.raises(StoreIdentityError, match="which was asked for"):
        StoreView.open(tmp_path / "store", uuid=uuid4())


def fold_of_logs(folder: Path) -> Fold:
    """Without the index."""
    with StoreView.open(folder) as view:
        records, fold = Records(folder, uuid=view.uuid), Fold()
        for lsn, record in records.replay(data=(0, view.data_lsn), control=(0, view.control_lsn)):
            fold.apply(lsn, record)
    return fold


def count_read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """LSNs of the data log that are read from now on."""
    seen: list[int] = []
    scan = Records.scan_data

    def watched(self: Records, start: int, end: int) -> Iterator[tuple[int, Record]]:
        for lsn, record in scan(self, start, end):
            seen.append(lsn)
            yield lsn, record

    monkeypatch.setattr(Records, "scan_data", watched)
    return seen


def test_a_view_takes_up_where_the_index_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(tmp_path) as bench:
        bench.serve(0)
        bench.play(bench.lease())
        bench.cut(1)
    expected = fold_of_logs(tmp_path)
    seen = count_read(monkeypatch)
    view = StoreView.open(tmp_path)
    assert len(seen) <= 1  # all but the newest record is in the index
    assert view.fold == expected
    assert view.ledger().episodes == 8
    with opened(tmp_path) as bench:  # the index is the owner's now
        bench.owner._state.index._failed = True  # and stays behind
        bench.serve(1, step=1, batch_lsn=bench.owner._state.fold.batch_lsns[0, 1])
        bench.play(bench.lease(), version=1)
        view.refresh()
        assert view.fold == bench.owner._state.fold == fold_of_logs(tmp_path)
        assert view.ledger() == bench.owner.ledger()


@pytest.mark.parametrize("harm", ["gone", "rubbish", "another store's", "of another format", "ahead"])
def test_a_view_does_without_an_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, harm: str) -> None:
    for name in ("store", "other"):
        with opened(tmp_path / name) as bench:
            bench.serve(0)
            bench.play(bench.lease())
            bench.cut(1)
    folder = tmp_path / "store"
    index = folder / "index"
    if harm == "gone":
        shutil.rmtree(index)
    elif harm == "rubbish":
        (index / "data.mdb").write_bytes(b"rubbish" * 999)
    elif harm == "another store's":
        shutil.copyfile(tmp_path / "other" / "index" / "data.mdb", index / "data.mdb")
    elif harm == "of another format":
        monkeypatch.setattr(index_module, "FORMAT", 99)
    else:
        monkeypatch.setattr(LogReader, "watermark", lambda self: 1_000)
    with StoreView.open(folder) as view:
        assert view.fold == fold_of_logs(folder)


def test_views_of_one_process_share_the_index(tmp_path: Path) -> None:
    with opened(tmp_path) as bench:
        bench.serve(0)
        bench.play(bench.lease())
    first, second = StoreView.open(tmp_path), StoreView.open(tmp_path)
    leases = sorted(first.fold.groups.keys())
    with opened(tmp_path) as bench:  # an owner comes, and goes
        assert bench.owner._state.index._index.is_published
        assert first.fold.versions[0].version == 0
    shutil.rmtree(tmp_path / "index")
    with opened(tmp_path):  # another index takes its place
        pass
    assert [second.fold.groups[lease].lease for lease in leases] == leases
    assert second.fold.versions[0].version == 0
    shutil.rmtree(tmp_path / "index")
    with pytest.raises(StoreError, match="no index"):
        second.fold.late.get(8)
    second.refresh()
    assert second.fold.late.get(8) is None
    assert second.fold == fold_of_logs(tmp_path)


def test_a_view_without_an_index_goes_on_over_a_trim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it had not read is gone; the sums are the owner's all the same."""

    def refuse(_: IndexView) -> None:
        raise StoreError("the index is not for this user")

    monkeypatch.setattr(IndexView, "at_one_cut", refuse)
    run = make_run(tmp_path / "run")
    with opened(run / "store", config=bounded()) as bench:
        fill(bench, run, last=4)
        view = StoreView.open(run / "store")
        assert view.ledger() == bench.owner.ledger()
        fill(bench, run, first=5, last=30)
        done = bench.owner.trim()
        assert done is not None
        assert done.data_lsn > view.data_lsn
        view.refresh()
        for one in (view, StoreView.open(run / "store")):
            assert one.ledger() == bench.owner.ledger()
            assert one.fold.num_unresolved == 0
            assert one.fold.trim == bench.owner._state.fold.trim
            assert one.fold.stages == bench.owner._state.fold.stages
            assert one.fold.versions == bench.owner._state.fold.versions
        assert min(view.fold.groups.keys()) >= done.data_lsn
