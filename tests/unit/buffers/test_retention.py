"""Trimming: the oldest segments go, the sums stay, and nothing that somebody needs is ever missing."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from buffers import retention, snapshots
from buffers.log.readers import reading
from buffers.log.segments import Segment, list_starts
from buffers.replaying import ReplayReader
from buffers.retention import Retention, Trimmed
from buffers.verification import verify
from buffers.view import StoreView
from configs.schema import Replay, RunConfig
from contracts.errors import StoreError
from contracts.records import Ack, Batch, Fault, Kind, Lease, Ledger
from tests.unit.buffers.bench import Bench, make_step, opened, small_config
from tests.unit.buffers.failpoints import failpoints
from tests.unit.buffers.test_snapshots import checkpoint, make_run

BIG = 10_000  # tokens: an episode of 80 KB, a dozen in a segment
STEPS = 14


def bounded(**bounds: Any) -> RunConfig:
    return small_config(retention=bounds or {"max_mib": 1})


def play(bench: Bench, leases: Sequence[Lease], *, version: int) -> list[Ack]:
    return bench.play(leases, version=version, steps=(make_step(BIG),))


def fill(bench: Bench, run: Path, *, first: int = 1, last: int = STEPS) -> None:
    """Steps with big episodes, a checkpoint after each; genesis and the newest two are kept."""
    if first == 1:
        bench.serve(0)
        checkpoint(bench, run, version=0, step=0)
    for step in range(first, last + 1):
        play(bench, bench.lease(), version=step - 1)
        lsn, _ = bench.cut(step, parent_version=step - 1)
        bench.serve(step, step=step, batch_lsn=lsn)
        checkpoint(bench, run, version=step, step=step)
        if step > 2:
            shutil.rmtree(run / "checkpoints" / f"step-{step - 2:06d}")
    bench.owner._state.index.flush()


def trim(bench: Bench) -> Trimmed:
    done = bench.owner.trim()
    assert done is not None
    return done


def starts(run: Path) -> list[int]:
    return list_starts(run / "store" / "data")


def ledger(run: Path) -> Ledger:
    return StoreView.open(run / "store").ledger()


def test_the_oldest_segments_go_and_the_sums_stay(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    with opened(run / "store", config=bounded()) as bench:
        fill(bench, run)
        before, num = bench.owner.ledger(), len(starts(run))
        done = trim(bench)
        assert (done.reason, done.num_segments) == ("size", num - len(starts(run)))
        assert starts(run)[0] == done.data_lsn > 0
        assert bench.owner.ledger() == ledger(run) == before
        assert bench.owner.trim() is None
        last = bench.owner.decisions()[-1]
    for without_index in (False, True):
        if without_index:
            shutil.rmtree(run / "store" / "index")
        with opened(run / "store", config=bounded()) as bench:
            assert bench.owner.ledger() == before
            assert last in bench.owner.decisions()
            bench.serve(STEPS, step=STEPS)
            assert min(lease.task.position for lease in bench.lease()) >= sum(before.ended.values())
            before = bench.owner.ledger()
            assert before.balanced
        assert ledger(run) == before
        assert verify(run).defects == []


def test_a_store_is_trimmed_again_and_again(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    config = bounded()
    with opened(run / "store", config=config) as bench:
        fill(bench, run)
        first = trim(bench)
    shutil.rmtree(run / "store" / "index")
    with opened(run / "store", config=config) as bench:
        bench.serve(STEPS, step=STEPS)
        fill(bench, run, first=STEPS + 1, last=2 * STEPS)
        second = trim(bench)
        assert second.data_lsn > first.data_lsn
        before = bench.owner.ledger()
    shutil.rmtree(run / "store" / "index")
    assert ledger(run) == before
    with opened(run / "store", config=config) as bench:
        assert bench.owner.ledger() == before
        assert bench.owner.status()["unresolved"] == 0


@pytest.mark.parametrize(
    ("bounds", "reason"),
    [({"max_age_s": 1e-6}, "age"), ({"max_episodes": 10}, "count"), ({"max_mib": 1}, "size")],
    ids=["age", "count", "size"],
)
def test_each_bound_asks(tmp_path: Path, bounds: dict[str, Any], reason: str) -> None:
    run = make_run(tmp_path / "run")
    with opened(run / "store", config=bounded(**bounds)) as bench:
        fill(bench, run)
        assert trim(bench).reason == reason


def test_without_a_bound_nothing_goes(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    with opened(run / "store") as bench:
        fill(bench, run)
        assert bench.owner.trim() is None


def test_what_has_not_ended_and_what_a_start_needs_stays(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    with opened(run / "store", config=bounded()) as bench:
        bench.serve(0)
        (waiting, *others) = bench.lease()
        late = bench.play([waiting], reward=None, reward_deadline=4e9)
        play(bench, others, version=0)
        lsn, _ = bench.cut(1)
        bench.serve(1, step=1, batch_lsn=lsn)
        checkpoint(bench, run, version=0, step=0)
        checkpoint(bench, run, version=1, step=1)
        fill(bench, run, first=2)
        assert bench.owner.trim() is None  # a reward is still to come
        assert bench.owner.read([ack.lsn for ack in late])
    run = make_run(tmp_path / "other")
    with opened(run / "store", config=bounded()) as bench:
        fill(bench, run)
        done = trim(bench)
        for _, record in bench.owner.decisions(kinds=[Kind.BATCH]):
            if isinstance(record, Batch) and record.step == STEPS:  # the one after the older kept checkpoint
                assert bench.owner.read([row.reward_lsn for row in record.rows])
        shutil.rmtree(run / "checkpoints")
        assert bench.owner.trim() is None  # no checkpoint beside genesis: every batch is needed
        assert starts(run)[0] == done.data_lsn


RARE_FROM = 48  # the position at which the rare task comes again, and fails


def name_tasks(position: int) -> tuple[str, int]:
    return ("rare" if position in (0, RARE_FROM) else f"task/{position}"), position


def with_replay() -> RunConfig:
    return bounded().model_copy(update={"replay": Replay.model_validate({"enabled": True})})


def play_rare(bench: Bench, run: Path, *, step: int) -> Batch:
    """One step; the rare task succeeds the first time and fails the second."""
    for lease in bench.lease():
        fails = lease.task.task_id == "rare" and lease.task.position > 0
        rewards = [0.0 if fails else float(member) for member in lease.missing]
        made = [
            bench.make(lease, member, version=step - 1, steps=(make_step(BIG),), reward=reward)
            for member, reward in zip(lease.missing, rewards, strict=True)
        ]
        bench.owner.append(made)
    lsn, batch = bench.cut(step, parent_version=step - 1, max_staleness=100)
    bench.serve(step, step=step, batch_lsn=lsn)
    checkpoint(bench, run, version=step, step=step)
    if step > 2:
        shutil.rmtree(run / "checkpoints" / f"step-{step - 2:06d}")
    bench.owner._state.index.flush()
    return batch


def test_a_stored_success_that_was_trimmed_is_not_replayed(tmp_path: Path) -> None:
    """It would be a batch that no learner can read; one that is still there is replayed, and then stays."""
    run = make_run(tmp_path / "run")
    with opened(run / "store", config=with_replay(), source=name_tasks) as bench:
        bench.serve(0)
        checkpoint(bench, run, version=0, step=0)
        stored, _ = play_rare(bench, run, step=1).remembered
        fold = bench.owner._state.fold
        for step in range(2, RARE_FROM // 2 + 2):  # the last one has the rare task again
            batch = play_rare(bench, run, step=step)
            assert bench.owner.read([row.reward_lsn for row in batch.rows])
            assert not any(row.replayed for row in batch.rows)
            bench.owner.trim()
            came = {fold.groups[row.lease].task.position for row in batch.rows}
            assert (RARE_FROM in came) == (step == RARE_FROM // 2 + 1)
        assert fold.successes["rare"] == ((stored.episode_lsn, stored.reward_lsn),)
        assert stored.episode_lsn < starts(run)[0]


def test_what_a_batch_on_its_way_replays_is_not_trimmed(tmp_path: Path) -> None:
    """The trim begins between the cut of a batch and its record."""
    run = make_run(tmp_path / "run")
    with opened(run / "store", config=with_replay(), source=name_tasks) as bench:
        bench.serve(0)
        checkpoint(bench, run, version=0, step=0)
        for step in range(1, RARE_FROM // 2 + 1):
            play_rare(bench, run, step=step)
        assert starts(run)[0] == 0
        state, trims = bench.owner._state, list[Trimmed | None]()
        finish = state.finish

        def trim_meanwhile(future: Future[list[int]]) -> list[int]:
            if state.naming and not trims:
                trims.append(None)
                trims.append(bench.owner.trim())
            return finish(future)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(state, "finish", trim_meanwhile)
            batch = play_rare(bench, run, step=RARE_FROM // 2 + 1)
        (row,) = [row for row in batch.rows if row.replayed]
        assert trims == [None, None]
        assert bench.owner.read([row.episode_lsn])
        assert bench.owner.trim() is None, "it is named by a batch after the oldest kept checkpoint"


def test_a_step_that_comes_and_goes_while_a_trim_looks_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its batch is neither open any more, nor was it there when the trim asked what batches need."""
    run = make_run(tmp_path / "run")
    with opened(run / "store", config=with_replay(), source=name_tasks) as bench:
        bench.serve(0)
        checkpoint(bench, run, version=0, step=0)
        for step in range(1, RARE_FROM // 2 + 1):
            play_rare(bench, run, step=step)
        look, seen = Retention._look_into, list[Batch]()

        def train_meanwhile(self: Retention, segment: Segment) -> Any:
            if not seen:
                seen.append(play_rare(bench, run, step=RARE_FROM // 2 + 1))
            return look(self, segment)

        monkeypatch.setattr(Retention, "_look_into", train_meanwhile)
        assert bench.owner.trim() is None
        (row,) = [row for row in seen[0].rows if row.replayed]
        assert bench.owner.read([row.episode_lsn])


def test_every_batch_after_the_oldest_kept_checkpoint_can_be_read(tmp_path: Path) -> None:
    """However long ago it was made; genesis does not count."""
    run, kept = make_run(tmp_path / "run"), 7
    with opened(run / "store", config=bounded()) as bench:
        fill(bench, run, last=kept)
        folder = run / "checkpoints" / f"step-{kept:06d}"
        shutil.copytree(folder, tmp_path / "copy")
        fill(bench, run, first=kept + 1)
        shutil.move(tmp_path / "copy", folder)
        assert trim(bench).data_lsn > 0
        batches = [one for _, one in bench.owner.decisions(kinds=[Kind.BATCH]) if isinstance(one, Batch)]
        later = [row.reward_lsn for batch in batches if batch.step > kept for row in batch.rows]
        assert len(bench.owner.read(later)) == (STEPS - kept) * len(batches[0].rows)


def test_what_comes_for_a_trimmed_lease_is_kept_apart(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    with opened(run / "store", config=bounded()) as bench:
        bench.serve(0)
        lease = bench.lease(max_tasks=1)[0]
        play(bench, [lease], version=0)
        fill_rest(bench, run)
        trim(bench)
        again = replace(bench.make(lease, 0, version=1), seq=10_000)
        (ack,) = bench.owner.append([again])
        assert ack.fault is Fault.LEASE
        with pytest.raises(StoreError, match="trimmed"):
            bench.owner.read([lease.lsn])
        before = bench.owner.ledger()
    shutil.rmtree(run / "store" / "index")
    assert ledger(run) == before


def fill_rest(bench: Bench, run: Path) -> None:
    """As `fill`, where version 0 is served and a group is ready already."""
    checkpoint(bench, run, version=0, step=0)
    for step in range(1, STEPS + 1):
        play(bench, bench.lease(), version=step - 1)
        lsn, _ = bench.cut(step, parent_version=step - 1)
        bench.serve(step, step=step, batch_lsn=lsn)
        checkpoint(bench, run, version=step, step=step)
    for step in range(1, STEPS - 1):
        shutil.rmtree(run / "checkpoints" / f"step-{step:06d}")
    bench.owner._state.index.flush()


# ---------------------------------------------------------------------------------------------- readers


def test_no_read_fails_while_100_readers_and_a_snapshot_are_open(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    with opened(run / "store", config=bounded()) as bench:
        fill(bench, run)
        first = starts(run)[0]
        views = [StoreView.open(run / "store") for _ in range(100)]
        for view in views:
            view.__enter__()
        path = snapshots.create(run, "s")
        assert bench.owner.trim() is None
        assert starts(run)[0] == first

        def read_all(view: StoreView) -> int:
            lsns = [lsn for group in view.fold.groups.values() for lsn in group.lsns.values()]
            return len(view.episodes(lsns))

        with ThreadPoolExecutor(8) as pool:
            trims = [pool.submit(bench.owner.trim) for _ in range(4)]
            assert len(set(pool.map(read_all, views[:8]))) == 1
            assert [one.result() for one in trims] == [None] * 4
        for view in views:
            view.__exit__(None, None, None)
        assert trim(bench).data_lsn > first
        assert list((run / "store" / "readers").glob("*.lease")) == []
    snapshots.verify(path)
    assert len(StoreView.open(path / "store").fold.groups) == ledger(run).handed


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_100_readers_read_on_while_a_store_grows_and_is_trimmed(tmp_path: Path) -> None:
    """Readers come and go, and each reads all that it saw when it came, slowly; snapshots are made in between."""
    run = make_run(tmp_path / "run")
    ended, episodes = Event(), Counter[int]()
    tens = iter(range(1_000_000))

    def read_on(number: int) -> None:
        while not ended.is_set():
            with StoreView.open(run / "store") as view:
                first = view.fold.trimmed_lsn
                lsns = [lsn for group in view.fold.groups.values() for lsn in group.lsns.values() if lsn >= first]
                for lsn in lsns[next(tens) % 10 :: 10]:
                    view.episodes([lsn])
                    episodes[number] += 1
                ended.wait(0.1)

    num_trims = 0
    with opened(run / "store", config=bounded()) as bench:
        fill(bench, run)
        with ThreadPoolExecutor(100) as pool:
            readers = [pool.submit(read_on, number) for number in range(100)]
            try:
                for step in range(STEPS + 1, STEPS + 31):
                    fill(bench, run, first=step, last=step)
                    num_trims += bench.owner.trim() is not None
                    if step % 10 == 0:
                        snapshots.verify(snapshots.create(run, f"step-{step}"))
            finally:
                ended.set()
            for reader in readers:
                reader.result()
        assert bench.owner.trim() is not None or num_trims
        assert bench.owner.ledger().balanced
    assert len(episodes) == 100
    assert list((run / "store" / "readers").glob("*.lease")) == []
    print(f"{episodes.total()} episodes read by 100 readers, {num_trims} trims, 3 snapshots")


def test_a_dead_reader_does_not_pin_for_ever(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    program = (
        "import sys, time, pathlib; from buffers.log.readers import reading\n"
        "with reading(pathlib.Path(sys.argv[1])): print('reads', flush=True); time.sleep(600)"
    )
    with opened(run / "store", config=bounded()) as bench:
        fill(bench, run)
        command = [sys.executable, "-c", program, str(run / "store")]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            assert child.stdout.readline() == "reads\n"
            assert bench.owner.trim() is None
            child.kill()
            child.wait()
        assert trim(bench).num_segments > 0
        assert list((run / "store" / "readers").glob("*.lease")) == []


def test_readers_of_one_process_id_do_not_meet(tmp_path: Path) -> None:
    """Each container has its own process 1; a lease that one of them left is in nobody's way."""
    run = make_run(tmp_path / "run")
    with opened(run / "store"):
        pass
    program = (
        "import os, sys, pathlib; from buffers.log.readers import reading\n"
        "os.getpid = lambda: 1\n"
        "with reading(pathlib.Path(sys.argv[1])): print('reads', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", program, str(run / "store")]
    readers = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [reader.stdout.readline() for reader in readers if reader.stdout is not None]
    for reader in readers:
        reader.communicate()
    assert said == ["reads\n"] * 2


def test_a_reader_outlives_the_next_owner_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A trim that a crash left half done is ended by the next owner: as far as nobody reads what goes."""
    run = make_run(tmp_path / "run")
    with opened(run / "store", config=bounded()) as bench:
        fill(bench, run)
        with monkeypatch.context() as patch:
            patch.setattr(retention, "finish_trim", lambda *_: None)  # it was killed right before
            done = trim(bench)
    assert starts(run)[0] == 0 < done.data_lsn
    with reading(run / "store") as first:
        with opened(run / "store", config=bounded()) as bench:
            assert bench.owner.ledger().balanced
        assert starts(run)[0] == first == 0
    with opened(run / "store", config=bounded()):
        assert starts(run)[0] == done.data_lsn


def test_a_sampler_reads_what_it_drew_and_forgets_what_went(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    with opened(run / "store", config=bounded()) as bench:
        fill(bench, run)
        with ReplayReader.open(run / "store") as reader:
            drawn = reader.draw_uniform(64, seed=1)
            done = trim(bench)
            assert drawn.lsns.min() < done.data_lsn
            assert len(reader.episodes(drawn.lsns)) == 64
            reader.refresh()
            again = reader.draw_uniform(64, seed=1)
            assert again.lsns.min() >= done.data_lsn
            assert len(reader.episodes(again.lsns)) == 64


def test_reading_says_where_the_log_begins(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    with opened(run / "store", config=bounded()) as bench:
        fill(bench, run)
        with reading(run / "store") as lsn:
            assert lsn == 0
        done = trim(bench)
        with reading(run / "store") as lsn:
            assert lsn == done.data_lsn


# ---------------------------------------------------------------------------------------------- crashes


@pytest.mark.parametrize("every", [5, pytest.param(1, marks=[pytest.mark.slow, pytest.mark.timeout(900)])])
def test_a_trim_that_is_cut_at_any_step_is_ended_by_the_next_owner(tmp_path: Path, every: int) -> None:
    whole = make_run(tmp_path / "whole")
    with opened(whole / "store", config=bounded()) as bench:
        fill(bench, whole)
        before = bench.owner.ledger()
    run = tmp_path / "run"

    def prepare() -> None:
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(whole, run)

    def work() -> None:
        with opened(run / "store", config=bounded()) as bench:
            bench.owner.trim()

    for _ in failpoints(work, prepare=prepare, every=every):
        assert ledger(run) == before
        with opened(run / "store", config=bounded()) as bench:
            assert bench.owner.ledger() == before
            trims = bench.owner.decisions(kinds=[Kind.TRIM])
            bench.owner.trim()
            assert bench.owner.decisions(kinds=[Kind.TRIM]) if not trims else True
        shutil.rmtree(run / "store" / "index")
        assert ledger(run) == before
        assert verify(run).defects == []
