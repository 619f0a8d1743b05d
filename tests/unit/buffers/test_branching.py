"""A run restored from a snapshot or from an archive goes on to the same bits as the one that was never stopped."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from buffers import branching, snapshots
from buffers.archive import Archived, archive, read_archived
from buffers.archive import restore as restore_archive
from buffers.owner import StoreOwner
from buffers.verification import verify
from buffers.view import StoreView
from contracts.errors import RunFolderError, StoreIdentityError, UserError
from contracts.records import ControlRecord, Version
from tests.crash.plain import PlainRun, plain_config
from tests.unit.buffers.bench import name_task, opened, small_config
from tests.unit.buffers.failpoints import failpoints
from tests.unit.buffers.test_snapshots import make_run, train

STEPS = 4
CUTS = pytest.mark.parametrize("every", [11, pytest.param(1, marks=[pytest.mark.slow, pytest.mark.timeout(900)])])


def play(folder: Path, *, steps: int) -> list[str]:
    """Drive a plain run to `steps`; the hash of every step's weights."""
    config = plain_config(steps=steps)
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("config.yaml", "manifest.json"):
        if not (folder / name).exists():
            (folder / name).write_text("{}\n")
    run = PlainRun(folder, config=config)
    try:
        run.go()
        return hashes(run.owner.decisions())
    finally:
        run.close()


def hashes(decisions: list[tuple[int, ControlRecord]]) -> list[str]:
    return [record.root_hash for _, record in decisions if isinstance(record, Version)]


def adopt(folder: Path) -> None:
    """What the console does with the manifest, for a run that names its store in a file of its own."""
    (folder / "uuid").write_text(json.loads((folder / "manifest.json").read_text())["store_uuid"])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The hashes of a run that was never stopped."""
    return play(tmp_path_factory.mktemp("whole") / "run", steps=2 * STEPS)


@pytest.mark.parametrize("share", [True, False], ids=["branch", "copy"])
def test_a_restored_run_goes_on_to_the_same_bits(tmp_path: Path, whole: list[str], share: bool) -> None:
    play(tmp_path / "run", steps=STEPS)
    old = StoreView.open(tmp_path / "run" / "store")
    snapshots.create(tmp_path / "run", "half")
    uuid = branching.restore(tmp_path / "run" / "snapshots" / "half", tmp_path / "other", share=share)
    assert uuid != old.uuid
    new = StoreView.open(tmp_path / "other" / "store", uuid=uuid)
    assert (new.ledger(), new.decisions()) == (old.ledger(), old.decisions())
    segments = [path.relative_to(tmp_path / "run") for path in (tmp_path / "run" / "store").rglob("*.seg")]
    shared = [path for path in segments if (tmp_path / "other" / path).samefile(tmp_path / "run" / path)]
    assert bool(shared) is share
    assert not (tmp_path / "other" / "config.yaml").samefile(tmp_path / "run" / "snapshots" / "half" / "config.yaml")
    shutil.rmtree(tmp_path / "run")
    adopt(tmp_path / "other")
    assert play(tmp_path / "other", steps=2 * STEPS) == whole
    assert verify(tmp_path / "other").defects == []


def test_branches_of_branches_and_their_snapshots_read_and_go_on(tmp_path: Path) -> None:
    run = make_run(tmp_path / "first")
    with opened(run / "store") as bench:
        train(bench, run, steps=1)
    decided = [StoreView.open(run / "store").decisions()]
    for name, before in (("second", "first"), ("third", "second")):
        path = snapshots.create(tmp_path / before, "s")
        branching.restore(path, tmp_path / name, share=True)
        with opened(tmp_path / name / "store") as bench:
            bench.serve(10 + len(decided), step=1, parent=1)
            bench.play(bench.lease(), version=1)
            decided.append(bench.owner.decisions())
        assert decided[-1][: len(decided[-2])] == decided[-2]
        assert verify(tmp_path / name).defects == []
    assert len({StoreView.open(tmp_path / name / "store").uuid for name in ("first", "second", "third")}) == 3
    assert [StoreView.open(tmp_path / "first" / "store").decisions()] == decided[:1]
    snapshots.verify(tmp_path / "first" / "snapshots" / "s")


def test_the_old_store_and_the_new_one_are_not_each_other(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    with opened(run / "store") as bench:
        train(bench, run, steps=1)
        old = bench.owner.uuid
        path = snapshots.create(run, "s")
    branching.restore(path, tmp_path / "other", share=True)
    with pytest.raises(StoreIdentityError):
        StoreOwner.open(tmp_path / "other" / "store", config=small_config(), source=name_task, uuid=old)
    (tmp_path / "other" / "store" / "data" / "lineage").write_text("{}")
    with pytest.raises(StoreIdentityError, match="does not name stores"):
        StoreView.open(tmp_path / "other" / "store")
    (tmp_path / "other" / "store" / "data" / "lineage").unlink()
    with pytest.raises(StoreIdentityError, match="belongs to store"):
        StoreView.open(tmp_path / "other" / "store")


@pytest.mark.parametrize("name", ["", "..", ".hidden", "a b"])
def test_a_run_gets_a_plain_name_and_takes_nobodys(tmp_path: Path, name: str) -> None:
    run = make_run(tmp_path / "run")
    with opened(run / "store") as bench:
        train(bench, run, steps=1)
        path = snapshots.create(run, "s")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError):
        branching.restore(path, tmp_path / name, share=True)
    with pytest.raises(UserError, match="something already"):
        branching.restore(path, run, share=True)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_snapshot_that_is_not_whole_is_not_restored(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    with opened(run / "store") as bench:
        train(bench, run, steps=1)
        path = snapshots.create(run, "s")
    (path / "model" / "model.safetensors").unlink()
    with pytest.raises(RunFolderError, match="is missing"):
        branching.restore(path, tmp_path / "other", share=True)
    assert not (tmp_path / "other").exists()


@CUTS
def test_a_branch_that_is_cut_at_any_step_is_whole_or_not_there(tmp_path: Path, every: int) -> None:
    run = make_run(tmp_path / "run")
    with opened(run / "store") as bench:
        train(bench, run, steps=1)
        path = snapshots.create(run, "s")
        ledger = bench.owner.ledger()
    other = tmp_path / "other"

    def prepare() -> None:
        for folder in (other, *tmp_path.glob(".other.*")):
            shutil.rmtree(folder, ignore_errors=True)

    for _ in failpoints(lambda: branching.restore(path, other, share=True), prepare=prepare, every=every):
        if other.exists():
            assert StoreView.open(other / "store").ledger() == ledger
        snapshots.verify(path)


def test_a_deleted_snapshot_is_gone_and_what_it_shared_is_not(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    with opened(run / "store") as bench:
        train(bench, run, steps=1)
    for name in ("one", "two"):
        snapshots.create(run, name)
    branching.restore(run / "snapshots" / "one", tmp_path / "other", share=True)
    snapshots.delete(run, "one")
    assert [one.name for one in snapshots.list_all(run)] == ["two"]
    assert [path.name for path in (run / "snapshots").iterdir()] == ["two"]
    snapshots.verify(run / "snapshots" / "two")
    assert verify(run).defects == verify(tmp_path / "other").defects == []
    for name in ("one", "../run", "..", ""):
        with pytest.raises(UserError):
            snapshots.delete(run, name)


# ---------------------------------------------------------------------------------------------- archive


def test_an_archive_brings_a_wiped_run_back_to_the_same_bits(tmp_path: Path, whole: list[str]) -> None:
    check_archive(tmp_path, f"file://{tmp_path / 'far'}", whole)


def check_archive(tmp_path: Path, uri: str, whole: list[str]) -> None:
    """Archive, wipe, restore, go on."""
    run = tmp_path / "run"
    play(run, steps=STEPS - 1)
    first = archive(run, uri)
    assert read_archived(run / "store") == first
    play(run, steps=STEPS)
    second = archive(run, uri)
    assert second.data_lsn > first.data_lsn
    assert 0 < second.num_sent < first.num_sent
    assert archive(run, uri).num_sent == 0
    assert snapshots.find_folders(run) == []
    shutil.rmtree(run)
    uuid = restore_archive(uri, tmp_path / "back")
    assert StoreView.open(tmp_path / "back" / "store", uuid=uuid).data_lsn == second.data_lsn
    adopt(tmp_path / "back")
    assert play(tmp_path / "back", steps=2 * STEPS) == whole


def test_archiving_removes_what_a_killed_one_left_and_no_snapshot_of_a_users(tmp_path: Path) -> None:
    run, uri, _ = small_archive(tmp_path)
    dead = 4_194_305  # no process has a number that high
    left = f"archive-{dead}-0badc0de"
    for name in ("archive-20260131", "archive-1-00000000", left):
        snapshots.create(run, name)
    mark = run / "snapshots" / f".{left}.sending"
    mark.touch()
    archive(run, uri)
    assert [path.name for path in snapshots.find_folders(run)] == ["archive-1-00000000", "archive-20260131"]
    assert not mark.exists()


def small_archive(tmp_path: Path) -> tuple[Path, str, Archived]:
    run = make_run(tmp_path / "run")
    with opened(run / "store") as bench:
        train(bench, run, steps=1)
        uri = f"file://{tmp_path / 'far'}"
        return run, uri, archive(run, uri)  # while it is owned


def test_what_was_changed_or_taken_out_of_an_archive_is_not_restored(tmp_path: Path) -> None:
    _, uri, _ = small_archive(tmp_path)
    one = min((tmp_path / "far").rglob("objects/*"))
    kept = one.read_bytes()
    one.write_bytes(kept + b"x")
    with pytest.raises(RunFolderError, match="was changed"):
        restore_archive(uri, tmp_path / "back")
    one.unlink()
    with pytest.raises(UserError, match="does not answer as it should"):
        restore_archive(uri, tmp_path / "back")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["far", "run"]


@pytest.mark.parametrize("member", ["../../outside", "/outside", "store/../../../outside"])
def test_members_of_an_archive_that_lead_elsewhere_are_refused(tmp_path: Path, member: str) -> None:
    _, uri, _ = small_archive(tmp_path)
    (moment,) = (tmp_path / "far").rglob("moments/*.json")
    described = json.loads(moment.read_text())
    described["files"][member] = next(iter(described["files"].values()))
    moment.write_text(json.dumps(described))
    with pytest.raises(UserError, match="leads out of the folder"):
        restore_archive(uri, tmp_path / "back")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["far", "run"]


def test_an_archive_that_is_not_there_or_no_place_is_told(tmp_path: Path) -> None:
    run, uri, _ = small_archive(tmp_path)
    with pytest.raises(UserError, match="there is no archive"):
        restore_archive(f"file://{tmp_path / 'nowhere'}", tmp_path / "back")
    with pytest.raises(UserError, match="no place that can be used"):
        archive(run, "carrier-pigeon://roof")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="does not answer as it should"):
        archive(run, f"file://{tmp_path / 'file'}")
    assert snapshots.find_folders(run) == []
    branching.restore(snapshots.create(run, "s"), tmp_path / "other", share=True)
    archive(tmp_path / "other", uri)
    with pytest.raises(UserError, match="it has 2 stores"):
        restore_archive(uri, tmp_path / "back")
    restore_archive(uri, tmp_path / "back", uuid=StoreView.open(run / "store").uuid)


@CUTS
def test_an_archive_that_is_cut_at_any_step_is_ended_by_the_next(tmp_path: Path, every: int) -> None:
    run = make_run(tmp_path / "run")
    with opened(run / "store") as bench:
        train(bench, run, steps=1)
        ledger = bench.owner.ledger()
    uri, far, back = f"file://{tmp_path / 'far'}", tmp_path / "far", tmp_path / "back"

    def prepare() -> None:
        for folder in (far, back):
            shutil.rmtree(folder, ignore_errors=True)

    for _ in failpoints(lambda: archive(run, uri), prepare=prepare, every=every):
        archive(run, uri)
        assert snapshots.find_folders(run) == []
        restore_archive(uri, back)
        assert StoreView.open(back / "store").ledger() == ledger
