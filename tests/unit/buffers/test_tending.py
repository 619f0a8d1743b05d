"""Verify, repair, erase: what is wrong is found, what can be mended is, what is erased is gone; at every failpoint."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from buffers import branching, snapshots
from buffers.archive import archive
from buffers.codec import decode
from buffers.dispenser import Dispenser
from buffers.erasure import Choice, erase
from buffers.index import Changes
from buffers.log.reader import LogReader
from buffers.repair import repair
from buffers.verification import verify
from buffers.view import StoreView
from contracts.errors import UserError
from contracts.records import Batch, Episode, Kind, Ledger, Served
from tests.unit.buffers.bench import make_step, opened, small_config
from tests.unit.buffers.failpoints import failpoints
from tests.unit.buffers.test_snapshots import checkpoint, make_run, train


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three steps in three lives of a run, with a snapshot after the second and one ready group left over."""
    run = make_run(tmp_path_factory.mktemp("trained") / "run")
    with opened(run / "store") as bench:
        train(bench, run, steps=2)
        snapshots.create(run, "second")
    with opened(run / "store") as bench:
        bench.owner.decide(Served(version=2, gap=0.0), bench.session)
        bench.play(bench.lease(), version=2)
        lsn, _ = bench.cut(3, parent_version=2)
        bench.serve(3, step=3, batch_lsn=lsn)
        checkpoint(bench, run, version=3, step=3)
        bench.play(bench.lease(max_tasks=1), version=3)
    return run


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return copy(trained, tmp_path / "run")


def copy(run: Path, to: Path) -> Path:
    """With its hard links."""
    shutil.rmtree(to, ignore_errors=True)
    inodes: dict[int, Path] = {}

    def link_or_copy(source: str, target: str) -> str:
        inode = Path(source).stat().st_ino
        if inode in inodes:
            Path(target).hardlink_to(inodes[inode])
        else:
            shutil.copy2(source, target)
            inodes[inode] = Path(target)
        return target

    shutil.copytree(run, to, copy_function=link_or_copy)
    return to


def episodes(run: Path) -> dict[int, Episode]:
    reader = LogReader(run / "store" / "data")
    found = {frame.lsn: decode(frame.kind, frame.payload) for frame in reader.scan() if frame.kind == Kind.EPISODE}
    return {lsn: record for lsn, record in found.items() if isinstance(record, Episode)}


def ledger(run: Path) -> Ledger:
    return StoreView.open(run / "store").ledger()


def damage(path: Path, *, offset: int, num_bytes: int = 1) -> None:
    """Flip bits in a file of its own: what shares its inode is not touched."""
    data = bytearray(path.read_bytes())
    for place in range(offset, offset + num_bytes):
        data[place] ^= 0xFF
    draft = path.with_suffix(".draft")
    draft.write_bytes(data)
    draft.replace(path)


def place(run: Path, lsn: int, log: str = "data") -> tuple[Path, int]:
    """The segment of an LSN, and its offset there."""
    (segment,) = [s for s in LogReader(run / "store" / log).segments() if s.start_lsn <= lsn < s.end_lsn]
    return segment.path, lsn - segment.start_lsn


# ---------------------------------------------------------------------------------------------- verify


def test_a_whole_store_has_no_defects(run: Path) -> None:
    seen: list[tuple[int, int]] = []
    found = verify(run, on_progress=lambda *done: seen.append(done))
    assert found.defects == []
    assert (found.num_snapshots, found.num_records > 30) == (1, True)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1][0] == seen[-1][1] == found.num_bytes
    assert verify(run / "snapshots" / "second").defects == []


def test_a_live_store_is_verified_too(run: Path) -> None:
    with opened(run / "store") as bench:
        bench.owner.decide(Served(version=3, gap=0.0), bench.session)
        bench.play(bench.lease(), version=3)
        assert verify(run).defects == []


@pytest.mark.parametrize("every", [211, pytest.param(1, marks=[pytest.mark.slow, pytest.mark.timeout(900)])])
def test_every_flipped_bit_of_an_episode_is_found(run: Path, every: int) -> None:
    lsn = min(episodes(run))
    path, offset = place(run, lsn)
    frame = LogReader(run / "store" / "data").read(lsn)
    whole = path.read_bytes()
    for bit in range(0, 8 * (48 + len(frame.payload)), every):
        data = bytearray(whole)
        data[offset + bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        (defect,) = [one for one in verify(run).defects if one.text.endswith(f"up to LSN {frame.next_lsn}")]
        assert (defect.place, defect.lsn) == ("data", lsn)


def test_what_a_batch_names_must_be_there(run: Path) -> None:
    lsn = min(episodes(run))
    path, offset = place(run, lsn)
    damage(path, offset=offset + 50)
    texts = [one.text for one in verify(run).defects if one.place == "control"]
    assert texts == [f"batch of step 1: there is no episode at LSN {lsn}"]


def test_a_changed_decision_breaks_the_chain(run: Path) -> None:
    reader = LogReader(run / "store" / "control")
    frames = list(reader.scan())
    path, offset = place(run, frames[3].lsn, "control")
    damage(path, offset=offset + 100)
    found = [one for one in verify(run).defects if one.place == "control"]
    assert any("bytes are damaged" in one.text for one in found)


def test_an_index_that_does_not_say_what_the_logs_say_is_found_and_set_aside(run: Path) -> None:
    with opened(run / "store") as bench:
        index = bench.owner._state.index._index
        lease = min(bench.owner._state.fold.groups)
        index.write(Changes(index.state, index.data_lsn, index.control_lsn, shelves={"late": [(lease, 1)]}))
    (defect,) = verify(run).defects
    assert (defect.place, defect.text.startswith("late: not what the logs say")) == ("index", True)
    before = ledger(run)
    (kept,) = repair(run).kept
    assert (kept / "data.mdb").is_file()
    assert verify(run).defects == []
    with opened(run / "store") as bench:
        assert bench.owner.ledger() == before
    assert verify(run).defects == []
    shutil.rmtree(run / "store" / "index")
    (run / "store" / "index").mkdir()
    (run / "store" / "index" / "data.mdb").write_bytes(b"no index")
    (defect,) = verify(run).defects
    assert "does not read" in defect.text


def test_a_damaged_snapshot_is_named(run: Path) -> None:
    (run / "snapshots" / "second" / "config.yaml").write_text("another")
    (defect,) = verify(run).defects
    assert (defect.place, defect.text) == ("snapshot second", "config.yaml was changed")


# ---------------------------------------------------------------------------------------------- repair


def break_first_episode(run: Path) -> tuple[int, bytes]:
    """Damage a record that the snapshot has too, in the run's copy alone; its LSN and the file as it was."""
    lsn = min(episodes(run))
    path, offset = place(run, lsn)
    whole = path.read_bytes()
    damage(path, offset=offset + 60, num_bytes=4)
    return lsn, whole


def test_damage_is_mended_from_a_snapshot_and_kept_aside(run: Path) -> None:
    lsn, whole = break_first_episode(run)
    path, _ = place(run, lsn)
    broken = path.read_bytes()
    done = repair(run)
    ((log, start, end),) = done.mended
    assert (log, start, done.lost) == ("data", lsn, ())
    assert end == LogReader(run / "store" / "data").read(lsn).next_lsn
    assert path.read_bytes() == whole
    (kept,) = done.kept
    assert kept.read_bytes() == broken
    assert verify(run).defects == []
    assert repair(run).mended == ()


def test_what_no_copy_has_is_told_as_lost_and_left(run: Path) -> None:
    lsn = max(episodes(run))
    path, offset = place(run, lsn)
    damage(path, offset=offset + 60)
    before = path.read_bytes()
    done = repair(run)
    assert [(log, start) for log, start, _ in done.lost] == [("data", lsn)]
    assert (done.mended, done.kept) == ((), ())
    assert path.read_bytes() == before


def test_another_copy_of_the_run_can_be_named(run: Path, trained: Path) -> None:
    lsn = max(episodes(run))
    path, offset = place(run, lsn)
    whole = path.read_bytes()
    damage(path, offset=offset + 60)
    assert [(log, start) for log, start, _ in repair(run, sources=[trained]).mended] == [("data", lsn)]
    assert path.read_bytes() == whole


def test_only_a_copy_of_the_run_mends_it(run: Path, trained: Path, tmp_path: Path) -> None:
    """Not a run with segments of the same names, not a folder without a store; a branch does, as far as it shares."""
    lsn, whole = break_first_episode(run)
    path, _ = place(run, lsn)
    broken = path.read_bytes()
    shutil.rmtree(run / "snapshots")
    other = make_run(tmp_path / "other")
    with opened(other / "store") as bench:
        train(bench, other, steps=2)
    for source, found in ((other, "that is another store"), (tmp_path / "nowhere", "holds no store")):
        with pytest.raises(UserError, match=found):
            repair(run, sources=[source])
    assert path.read_bytes() == broken
    assert not (run / "store" / "damaged").exists()
    branching.restore(trained / "snapshots" / "second", tmp_path / "twig", share=False)
    assert [(log, start) for log, start, _ in repair(run, sources=[tmp_path / "twig"]).mended] == [("data", lsn)]
    assert path.read_bytes() == whole


def test_a_copy_that_went_on_by_itself_mends_nothing_of_what_came_after(run: Path, tmp_path: Path) -> None:
    """The same store, the same segment, the same epoch: and yet another log from where the two parted."""
    fork = copy(run, tmp_path / "fork")
    for folder, tokens in ((run, (3, 9)), (fork, (9, 3))):
        with opened(folder / "store", config=small_config(max_staleness=9)) as bench:
            bench.owner.decide(Served(version=3, gap=0.0), bench.session)
            lease, *_ = bench.lease(1)
            for member, num_tokens in enumerate(tokens):
                bench.owner.append([bench.make(lease, member, version=3, steps=(make_step(num_tokens),))])
            bench.play(bench.lease(1), version=3)  # here the two are as long as each other again
    lsn = max(episodes(run))
    assert lsn == max(episodes(fork))
    path, offset = place(run, lsn)
    assert place(fork, max(episodes(fork)))[0].name == path.name
    damage(path, offset=offset + 60)
    done = repair(run, sources=[fork])
    assert (done.mended, [(log, start) for log, start, _ in done.lost]) == ((), [("data", lsn)])


def test_what_was_erased_does_not_come_back_with_a_repair(run: Path, trained: Path) -> None:
    lsn = min(episodes(run))
    erase(run, Choice(lsns=frozenset((lsn,))), reason="asked for")
    snapshots.delete(run, "second")  # in which it is erased too
    path, offset = place(run, lsn)
    damage(path, offset=offset + 20)
    assert [start for _, start, _ in repair(run, sources=[trained]).mended] == [lsn]
    assert episodes(run)[lsn].steps == ()
    assert verify(run).defects == []


def test_repair_never_writes_into_a_shared_file(run: Path) -> None:
    lsn, _ = break_first_episode(run)
    path, _ = place(run, lsn)
    shared = run / "another-name"
    shared.hardlink_to(path)
    broken = shared.read_bytes()
    assert repair(run).mended
    assert shared.read_bytes() == broken
    assert not shared.samefile(path)


CUTS = pytest.mark.parametrize("every", [17, pytest.param(1, marks=[pytest.mark.slow, pytest.mark.timeout(900)])])


@CUTS
def test_a_repair_that_is_cut_at_any_step_is_done_by_the_next(trained: Path, tmp_path: Path, every: int) -> None:
    run = tmp_path / "run"
    whole, broken, lsn = b"", b"", -1

    def prepare() -> None:
        nonlocal whole, broken, lsn
        copy(trained, run)
        lsn, whole = break_first_episode(run)
        broken = place(run, lsn)[0].read_bytes()

    for _ in failpoints(lambda: repair(run), prepare=prepare, every=every):
        path = run / "store" / "data" / place(run, lsn)[0].name
        assert path.read_bytes() in (whole, broken)
        if path.read_bytes() == whole:
            assert [kept.read_bytes() for kept in (run / "store" / "damaged").iterdir()] == [broken]
        repair(run)
        assert path.read_bytes() == whole
        assert verify(run).defects == []


# ---------------------------------------------------------------------------------------------- erase


def test_erased_contents_are_gone_and_counts_stay(run: Path) -> None:
    before, whole = ledger(run), episodes(run)
    lsn = min(whole)
    path, offset = place(run, lsn)
    inside = slice(offset + 48, offset + 48 + len(LogReader(run / "store" / "data").read(lsn).payload))
    (step,) = whole[lsn].steps
    assert step.log_probs.tobytes() in path.read_bytes()[inside]
    done = erase(run, Choice(episodes=frozenset((whole[lsn].episode_id,))), reason="asked for")
    assert (done.lsns, done.num_snapshots, done.versions) == ((lsn,), 1, (1,))
    after = episodes(run)
    for folder in (run, run / "snapshots" / "second"):
        assert step.log_probs.tobytes() not in place(folder, lsn)[0].read_bytes()[inside]
    assert after.keys() == whole.keys()
    assert (after[lsn].steps, after[lsn].reward, after[lsn].lease) == ((), whole[lsn].reward, whole[lsn].lease)
    assert [len(one.steps) for at, one in after.items() if at != lsn] == [1] * (len(whole) - 1)
    assert ledger(run) == before
    assert verify(run).defects == []
    assert episodes(run / "snapshots" / "second")[lsn].steps == ()
    with opened(run / "store") as bench:
        assert bench.owner.ledger() == before


def test_what_is_erased_behind_a_snapshots_end_does_not_live_on_in_it(run: Path) -> None:
    before = episodes(run)
    with opened(run / "store") as bench:
        bench.owner.decide(Served(version=3, gap=0.0), bench.session)
        path = snapshots.create(run, "early")
        held = episodes(path)
        bench.play(bench.lease(max_tasks=1), version=3, environment_version="a word that is nowhere else")
    lsn = max(episodes(run).keys() - before.keys())
    shared, offset = place(run, lsn)
    record = shared.read_bytes()[offset:]
    assert record in (path / "store" / "data" / shared.name).read_bytes()
    assert lsn not in held
    snapshots.verify(path)
    erase(run, Choice(lsns=frozenset((lsn,))), reason="asked for")
    assert record not in (path / "store" / "data" / shared.name).read_bytes()
    assert episodes(path).keys() == held.keys()
    assert verify(run).defects == []


def test_a_whole_task_is_erased_by_name(run: Path) -> None:
    whole = episodes(run)
    task = whole[min(whole)].task_id
    done = erase(run, Choice(tasks=frozenset((task,))), reason="asked for")
    assert set(done.lsns) == {lsn for lsn, one in whole.items() if one.task_id == task}
    assert {one.task_id for one in episodes(run).values() if not one.steps} == {task}


def test_a_group_that_was_still_to_be_trained_on_is_closed(run: Path) -> None:
    ready = max(episodes(run))
    done = erase(run, Choice(lsns=frozenset((ready,))), reason="asked for")
    assert done.versions == ()
    with opened(run / "store") as bench:
        assert bench.owner.ledger().ended["quarantined"] == 1
        assert bench.owner.ledger().balanced
        bench.owner.decide(Served(version=3, gap=0.0), bench.session)
        bench.play(bench.lease(), version=3)
        _, batch = bench.cut(4, parent_version=3)
        assert ready not in [row.episode_lsn for row in batch.rows]


def test_what_the_next_start_needs_is_not_erased(run: Path) -> None:
    shutil.rmtree(run / "checkpoints" / "step-000003")
    whole = episodes(run)
    third = [row.episode_lsn for batch in batches(run) for row in batch.rows if batch.step == 3]
    with pytest.raises(UserError, match="computes that step again: the newest checkpoint is of step 2"):
        erase(run, Choice(lsns=frozenset(third[:1])), reason="asked for")
    assert episodes(run).keys() == whole.keys()
    assert all(one.steps for one in episodes(run).values())
    with pytest.raises(UserError, match="no episode or task of the store fits"):
        erase(run, Choice(lsns=frozenset((3,))), reason="asked for")


def test_a_run_that_lives_is_left_alone(run: Path) -> None:
    with opened(run / "store"):
        for work in (lambda: repair(run), lambda: erase(run, Choice(lsns=frozenset((1,))), reason="")):
            with pytest.raises(UserError, match="is held by process"):
                work()


SECRET = b"a-payload-nobody-should-find"


def find_secret(folder: Path) -> list[str]:
    return [
        path.relative_to(folder).as_posix()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and SECRET in path.read_bytes()
    ]


def test_an_erasure_reaches_every_copy_in_the_run_and_names_the_others(tmp_path: Path) -> None:
    """Segments, a snapshot and one that was never finished, what a repair set aside, a torn end, the index's pages."""
    run, uri = make_run(tmp_path / "runs" / "run"), f"file://{tmp_path / 'far'}"
    secret = make_step()
    secret = replace(secret, observation=np.frombuffer(SECRET, dtype=np.int32))
    with opened(run / "store") as bench:
        train(bench, run, steps=1)
        make = Dispenser._make_task
        with pytest.MonkeyPatch.context() as patch:  # a source of tasks that cannot be made again
            patch.setattr(Dispenser, "_make_task", lambda *given: replace(make(*given), payload=SECRET))
            external, *_ = bench.lease(1)
        (lease, *_) = bench.lease(1)
        ack, *_ = bench.play([lease], steps=(secret,), version=1)
        bench.owner._state.index.flush()
    snapshots.create(run, "s")
    archive(run, uri)
    branching.restore(run / "snapshots" / "s", tmp_path / "runs" / "twig", share=True)
    shutil.copytree(run / "snapshots" / "s", run / "snapshots" / ".t.4194305.tmp")
    whole = copy(run, tmp_path / "whole")
    path, offset = place(run, ack.lsn)
    damage(path, offset=offset + 20)
    (run / "store" / "damaged").mkdir()
    shutil.copytree(run / "store" / "index", run / "store" / "damaged" / "index-20260131")
    (run / "store" / "data" / "0000000000100000-0badc0de.torn").write_bytes(b"half a frame " + SECRET)
    assert repair(run, sources=[whole]).mended
    assert len({path.split("/")[1] for path in find_secret(run) if path.startswith("store")}) == 3
    done = erase(run, Choice(tasks=frozenset((external.task.task_id, lease.task.task_id))), reason="asked for")
    assert find_secret(run) == []
    assert {path.split("/")[-1] for path in done.removed} == {
        ".t.4194305.tmp",
        "index-20260131",
        "0000000000100000-0badc0de.torn",
    }
    assert [text.partition(",")[0] for text in done.elsewhere] == [
        f"the archive {uri}",
        str(tmp_path / "runs" / "twig"),
    ]
    assert verify(run).defects == []
    with opened(run / "store") as bench:
        assert bench.owner.ledger().balanced


@pytest.mark.parametrize("name", [".t.{}.tmp", ".archive-{}-0badc0de.sending"])
def test_a_snapshot_that_is_being_taken_or_sent_is_waited_for(run: Path, name: str) -> None:
    draft = run / "snapshots" / name.format(os.getpid())
    draft.mkdir()
    with pytest.raises(UserError, match="is making, removing or sending a snapshot"):
        erase(run, Choice(lsns=frozenset((min(episodes(run)),))), reason="asked for")
    assert draft.is_dir()
    assert all(episode.steps for episode in episodes(run).values())


def test_damage_in_which_something_may_be_left_is_named(run: Path) -> None:
    lsn = max(episodes(run))
    path, offset = place(run, lsn)
    damage(path, offset=offset + 60)
    done = erase(run, Choice(lsns=frozenset((min(episodes(run)),))), reason="asked for")
    assert [text for text in done.elsewhere if text.startswith(f"damaged bytes of data LSN {lsn} to ")]


@CUTS
def test_an_erasure_that_is_cut_at_any_step_is_ended_by_the_next(trained: Path, tmp_path: Path, every: int) -> None:
    run = tmp_path / "run"
    whole = episodes(trained)
    before = ledger(trained)
    lsn = min(whole)
    choice = Choice(lsns=frozenset((lsn,)))
    for _ in failpoints(
        lambda: erase(run, choice, reason="asked for"), prepare=lambda: copy(trained, run), every=every
    ):
        begun = bool([1 for _, record in StoreView.open(run / "store").decisions(kinds=[Kind.ERASED])])
        gone = not episodes(run)[lsn].steps
        assert begun or not gone
        if begun and not gone:
            assert any("contents are still there" in one.text for one in verify(run).defects)
        erase(run, choice, reason="asked for")
        assert episodes(run)[lsn].steps == episodes(run / "snapshots" / "second")[lsn].steps == ()
        assert verify(run).defects == []
        assert ledger(run) == before


def batches(run: Path) -> list[Batch]:
    decisions = StoreView.open(run / "store").decisions(kinds=[Kind.BATCH])
    return [record for _, record in decisions if isinstance(record, Batch)]
