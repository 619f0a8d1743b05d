"""Snapshots of live and stopped runs: whole, apart from the run, and safe to read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from buffers import branching, snapshots
from buffers.owner import StoreOwner
from buffers.view import StoreView
from contracts.errors import FormatError, RunFolderError, UserError
from contracts.records import Checkpoint
from tests.unit.buffers.bench import Bench, name_task, opened, small_config


def make_run(folder: Path) -> Path:
    """A run's folder without its store."""
    (folder / "model").mkdir(parents=True)
    (folder / "config.yaml").write_text("seed: 1\n")
    (folder / "manifest.json").write_text("{}\n")
    (folder / "model" / "model.safetensors").write_bytes(b"base weights")
    (folder / "task").mkdir()
    (folder / "task" / "task.py").write_text("a verifier of the user's own")
    return folder


def checkpoint(bench: Bench, run: Path, *, version: int, step: int) -> Path:
    folder = run / "checkpoints" / f"step-{step:06d}"
    folder.mkdir(parents=True)
    (folder / "weights.bin").write_bytes(bytes([version]))
    record = Checkpoint(
        version=version,
        step=step,
        branch=0,
        folder=f"checkpoints/{folder.name}",
        root_hash=f"hash-{version}",
        state_hash="state",
    )
    bench.owner.decide(record, bench.session)
    return folder


def train(bench: Bench, run: Path, *, steps: int) -> None:
    """Genesis and `steps` steps, with a checkpoint after each."""
    bench.serve(0)
    checkpoint(bench, run, version=0, step=0)
    for step in range(1, steps + 1):
        bench.play(bench.lease(), version=step - 1)
        lsn, _ = bench.cut(step, parent_version=step - 1)
        bench.serve(step, step=step, batch_lsn=lsn)
        checkpoint(bench, run, version=step, step=step)


def test_a_snapshot_of_a_live_run_opens_like_the_run_as_it_was(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    with opened(run / "store") as bench:
        train(bench, run, steps=3)
        ledger, decisions = bench.owner.ledger(), bench.owner.decisions()
        path = snapshots.create(run, "before")
        bench.play(bench.lease(), version=3)
        bench.cut(4, parent_version=3)
        assert bench.owner.ledger() != ledger
    described = snapshots.verify(path)
    assert path == run / "snapshots" / "before"
    assert described.checkpoints == ("checkpoints/step-000000", "checkpoints/step-000003")
    assert described.version == 3
    shutil.move(path, tmp_path / "elsewhere")
    shutil.rmtree(run)
    with StoreView.open(tmp_path / "elsewhere" / "store", uuid=described.store_uuid) as view:
        assert view.ledger() == ledger
        assert view.decisions() == decisions
        batches = list(view.fold.groups.values())
        assert len(view.episodes([lsn for group in batches for lsn in group.lsns.values()])) == ledger.episodes
    assert (tmp_path / "elsewhere" / "model" / "model.safetensors").read_bytes() == b"base weights"
    assert (tmp_path / "elsewhere" / "task" / "task.py").read_text() == "a verifier of the user's own"
    assert snapshots.verify(tmp_path / "elsewhere") == described


def test_a_snapshot_of_a_stopped_run_links_what_is_sealed(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    with opened(run / "store") as bench:
        train(bench, run, steps=1)
    path = snapshots.create(run, "done")
    (segment,) = (run / "store" / "data").glob("*.seg")
    assert (path / "store" / "data" / segment.name).samefile(segment)
    assert (path / "checkpoints" / "step-000001" / "weights.bin").samefile(
        run / "checkpoints" / "step-000001" / "weights.bin"
    )


def test_the_segment_that_is_written_is_shared_and_ends_where_it_ended(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    with opened(run / "store") as bench:
        train(bench, run, steps=1)
        ledger = bench.owner.ledger()
        path = snapshots.create(run, "live")
        for log in ("data", "control"):
            (segment,) = (run / "store" / log).glob("*.seg")
            assert (path / "store" / log / segment.name).samefile(segment)
        bench.play(bench.lease(), version=1)
        bench.serve(2, step=2, parent=1)
        written = bench.owner.ledger()
        assert written.episodes > ledger.episodes
        described = snapshots.verify(path)
        assert StoreView.open(path / "store").ledger() == ledger
    shutil.copytree(path, tmp_path / "copy")
    uuid = branching.restore(path, tmp_path / "twig", share=True)
    for folder in (tmp_path / "copy", tmp_path / "twig"):
        with opened(folder / "store") as bench:
            assert bench.owner.ledger() == ledger
            bench.owner.attach("goes on")
    assert StoreView.open(tmp_path / "twig" / "store", uuid=uuid).ledger() == ledger
    assert StoreView.open(run / "store").ledger() == written
    assert snapshots.verify(path) == described


def test_a_crash_after_a_snapshot_copies_no_segment(tmp_path: Path) -> None:
    """Zeros behind the log are cut off a file that a snapshot shares; what might be records is not."""
    run = make_run(tmp_path / "run")
    with opened(run / "store") as bench:
        train(bench, run, steps=1)
        path = snapshots.create(run, "live")
        described = snapshots.verify(path)
        shutil.copytree(run / "store", tmp_path / "crashed")
    (segment,) = (run / "store" / "data").glob("*.seg")
    shared = path / "store" / "data" / segment.name
    with shared.open("r+b") as file:
        file.truncate(1 << 20)
    for log in ("data", "control"):
        shutil.copy(tmp_path / "crashed" / log / "watermark", run / "store" / log / "watermark")
    with opened(run / "store"):
        assert shared.samefile(segment)
        assert segment.stat().st_size < 1 << 20
    with shared.open("ab") as file:
        file.write(b"torn")
    with opened(run / "store"):
        assert not shared.samefile(segment)
    assert snapshots.verify(path) == described


def test_what_was_verified_once_is_compared_with_its_sha256(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    with opened(run / "store") as bench:
        train(bench, run, steps=1)
        path = snapshots.create(run, "s")
    weights = path / "model" / "model.safetensors"
    assert "model/model.safetensors" not in snapshots.read(path).files
    assert snapshots.verify(path) == snapshots.read(path)
    assert sorted(snapshots.read(path).files) == snapshots.read(path).members
    weights.write_bytes(weights.read_bytes()[::-1])
    with pytest.raises(RunFolderError, match=r"model/model.safetensors was changed"):
        snapshots.verify(path)


def test_without_an_index_a_snapshot_is_the_same(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    with opened(run / "store") as bench:
        train(bench, run, steps=3)
    with_index = snapshots.read(snapshots.create(run, "one"))
    shutil.rmtree(run / "store" / "index")
    without = snapshots.read(snapshots.create(run, "two"))
    assert (without.version, without.checkpoints) == (with_index.version, with_index.checkpoints)
    assert (without.files, without.links) == (with_index.files, with_index.links)


def test_a_snapshot_stays_as_it_is_when_the_run_goes_on(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    with opened(run / "store") as bench:
        train(bench, run, steps=1)
    path = snapshots.create(run, "one")
    with opened(run / "store") as bench:
        bench.serve(1, step=1)
        bench.play(bench.lease(), version=1)
    snapshots.verify(path)
    second = snapshots.create(run, "two")
    assert [one.name for one in snapshots.list_all(run)] == ["one", "two"]
    assert snapshots.verify(second).data_lsn > snapshots.read(path).data_lsn


def test_a_run_can_be_continued_from_a_copy_of_its_snapshot(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    with opened(run / "store") as bench:
        train(bench, run, steps=2)
        path = snapshots.create(run, "base")
    shutil.copytree(path, tmp_path / "copy")
    owner = StoreOwner.open(tmp_path / "copy" / "store", config=small_config(), source=name_task)
    try:
        bench = Bench(owner)
        bench.serve(2, step=2)
        assert len(bench.lease()) > 0
    finally:
        owner.close()
    snapshots.verify(path)


def test_the_newest_checkpoint_that_is_still_there_is_kept(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    with opened(run / "store") as bench:
        train(bench, run, steps=3)
        shutil.rmtree(run / "checkpoints" / "step-000003")
        path = snapshots.create(run, "pruned")
        assert snapshots.verify(path).checkpoints == ("checkpoints/step-000000", "checkpoints/step-000002")
        shutil.rmtree(run / "checkpoints")
        with pytest.raises(RunFolderError, match="none of the checkpoints"):
            snapshots.create(run, "nothing")
    assert [one.name for one in snapshots.list_all(run)] == ["pruned"]
    assert [entry.name for entry in (run / "snapshots").iterdir()] == ["pruned"]


def test_damage_is_found_and_named(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    with opened(run / "store") as bench:
        train(bench, run, steps=1)
        path = snapshots.create(run, "s")
    (segment,) = (path / "store" / "data").glob("*.seg")
    data = bytearray(segment.read_bytes())
    data[-1] ^= 1
    segment.write_bytes(data)
    (path / "config.yaml").unlink()
    (path / "extra").write_text("x")
    with pytest.raises(
        RunFolderError, match=r"config.yaml is missing; extra is not of the snapshot; store/data/.* was changed"
    ):
        snapshots.verify(path)


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", "/abs", ".hidden", "a\0b", "x" * 101, "a b", "-x"])
def test_names_that_lead_elsewhere_are_refused(tmp_path: Path, name: str) -> None:
    run = make_run(tmp_path / "run")
    with opened(run / "store"):
        pass
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match="a snapshot named"):
        snapshots.create(run, name)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_taken_name_and_no_run_are_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    with opened(run / "store"):
        pass
    snapshots.create(run, "s")
    with pytest.raises(UserError, match="there already"):
        snapshots.create(run, "s")
    with pytest.raises(RunFolderError, match=r"config.yaml"):
        snapshots.create(tmp_path, "s")
    assert snapshots.list_all(tmp_path) == []
    with pytest.raises(RunFolderError, match="does not read"):
        snapshots.read(tmp_path)


@pytest.mark.parametrize("member", ["../../outside", "/etc/hostname", "store/../../../outside", "link/outside"])
def test_members_that_lead_elsewhere_are_refused(tmp_path: Path, member: str) -> None:
    run = make_run(tmp_path / "run")
    with opened(run / "store"):
        pass
    path = snapshots.create(run, "s")
    (path / "link").symlink_to(tmp_path)
    described = json.loads((path / snapshots.MANIFEST).read_text())
    described["files"][member] = "0" * 64
    (path / snapshots.MANIFEST).write_text(json.dumps(described))
    with pytest.raises(UserError, match="leads out of the folder"):
        snapshots.verify(path)


def test_a_checkpoint_record_that_leads_elsewhere_is_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    with opened(run / "store") as bench:
        bench.serve(0)
        record = Checkpoint(version=0, step=0, branch=0, folder="../elsewhere", root_hash="", state_hash="")
        bench.owner.decide(record, bench.session)
        with pytest.raises(UserError, match="leads out of the folder"):
            snapshots.create(run, "s")


def test_a_snapshot_of_newer_code_is_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    with opened(run / "store"):
        pass
    path = snapshots.create(run, "s")
    described = json.loads((path / snapshots.MANIFEST).read_text())
    (path / snapshots.MANIFEST).write_text(json.dumps({**described, "format": 3}))
    with pytest.raises(FormatError, match="format 3"):
        snapshots.verify(path)
