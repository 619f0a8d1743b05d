"""Sampling beside the owner: what is drawn is durable, never late, and a function of the log's prefix and the seed."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from buffers.erasure import Choice, erase
from buffers.replaying import ReplayReader
from contracts.errors import StoreError, StoreIdentityError
from contracts.records import StopReason
from tests.unit.buffers.bench import Bench, Clock, opened, small_config
from tests.unit.buffers.test_retention import bounded, fill
from tests.unit.buffers.test_snapshots import checkpoint, make_run


def play(bench: Bench, steps: int) -> list[int]:
    """LSNs of the episodes of so many batches, each group with the rewards 0 and 1."""
    lsns = []
    first = bench.owner._state.fold.newest_version + 1
    if first == 0:
        bench.serve(0)
        first = 1
    for step in range(first, first + steps):
        lsns += [ack.lsn for ack in bench.play(bench.lease(), version=step - 1)]
        lsn, _ = bench.cut(step, parent_version=step - 1)
        bench.serve(step, step=step, batch_lsn=lsn)
    bench.owner._state.index.flush()
    return lsns


def test_a_reader_follows_the_owner_and_reads_what_it_draws(tmp_path: Path) -> None:
    with opened(tmp_path, config=small_config(steps=1000)) as bench:
        lsns = play(bench, 3)
        with ReplayReader.open(tmp_path, uuid=str(bench.owner.uuid)) as reader:
            assert reader.num_rows == len(lsns)
            draw = reader.draw_uniform(200, seed=1)
            assert set(draw.lsns.tolist()) == set(lsns)
            read = reader.episodes(draw.lsns)
            kept = bench.owner.read(draw.lsns.tolist())
            assert [one.episode_id for one in read] == [one.episode_id for one in kept]
            assert [one.steps[0].action.tolist() for one in read] == [one.steps[0].action.tolist() for one in kept]
            more = play(bench, 150)  # over a block
            reader.refresh()
            assert set(reader.draw_uniform(20_000, seed=2).lsns.tolist()) == {*lsns, *more}


def test_a_draw_is_a_function_of_the_prefix_and_the_seed(tmp_path: Path) -> None:
    with opened(tmp_path) as bench:
        play(bench, 5)
        mark = bench.owner._state.data.writer.sync()
        with ReplayReader.open(tmp_path) as reader:
            before = reader.draw_uniform(32, seed=9)
    with opened(tmp_path) as bench:
        play(bench, 5)
        with ReplayReader.open(tmp_path) as reader:
            again = reader.draw_uniform(32, seed=9, data_lsn=mark)
            assert again.lsns.tolist() == before.lsns.tolist()
            assert reader.draw_uniform(32, seed=10, data_lsn=mark).lsns.tolist() != before.lsns.tolist()


def test_late_and_faulty_episodes_are_never_drawn(tmp_path: Path) -> None:
    clock = Clock()
    with opened(tmp_path, config=small_config(max_staleness=1000), clock=clock) as bench:
        bench.serve(0)
        good, late, faulty, *_ = bench.lease()
        bench.owner.append([bench.make(late, 0)])
        bench.play([good])
        clock.now_s = 61.0
        bench.lease()
        (ack,) = bench.owner.append([bench.make(late, 1)])
        assert ack.late
        bench.play([faulty], stop_reason=StopReason.ENV_ERROR, reward=None)
        bench.owner._state.index.flush()
        with ReplayReader.open(tmp_path) as reader:
            drawn = set(reader.draw_uniform(500, seed=0).lsns.tolist())
            assert ack.lsn not in drawn
            rows = np.arange(reader.num_rows)
            reader.set_priorities(rows, np.full(len(rows), 5))
            assert set(reader.draw_by_priority(500, seed=0, beta=0.5).lsns.tolist()) == drawn
            assert set(reader.draw_by_task(500, seed=0, tasks=[rows.tolist()]).lsns.tolist()) == drawn
            members = Counter(episode.lease for episode in reader.episodes(np.array(sorted(drawn))))
            assert members == {late.lsn: 1, good.lsn: 2}


def test_priorities_decide_and_weights_correct(tmp_path: Path) -> None:
    with opened(tmp_path) as bench:
        lsns = play(bench, 2)
    with ReplayReader.open(tmp_path) as reader:
        with pytest.raises(StoreError, match="every priority is 0"):
            reader.draw_by_priority(4, seed=1, beta=1.0)
        reader.set_priorities(np.array([0, 1]), np.array([1, 3]))
        draw = reader.draw_by_priority(4, seed=1, beta=1.0)
        assert sorted(draw.lsns.tolist()) == [lsns[0], *[lsns[1]] * 3]
        assert sorted(draw.weights.tolist()) == [pytest.approx(1 / 3)] * 3 + [1.0]


def test_what_was_erased_is_drawn_no_more_whatever_its_priority(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    with opened(run / "store") as bench:
        bench.serve(0)
        checkpoint(bench, run, version=0, step=0)
        victim, *others = [ack.lsn for ack in bench.play(bench.lease(2))]
    with ReplayReader.open(run / "store") as reader:
        ones = np.ones(4, dtype=np.int64)
        reader.set_priorities(np.arange(4), ones)
        assert set(reader.draw_by_priority(64, seed=1, beta=0.5).lsns.tolist()) == {victim, *others}
        erase(run, Choice(lsns=frozenset([victim])), reason="asked for")
        with opened(run / "store"):
            pass  # the index hears of it
        reader.refresh()
        for _ in range(2):
            assert set(reader.draw_by_priority(64, seed=1, beta=0.5).lsns.tolist()) == set(others)
            reader.set_priorities(np.arange(4), ones)


def test_what_was_trimmed_is_drawn_no_more_whatever_its_priority(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    with opened(run / "store", config=bounded()) as bench:
        fill(bench, run)
        with ReplayReader.open(run / "store") as reader:
            rows, ones = np.arange(reader.num_rows), np.ones(reader.num_rows, dtype=np.int64)
            reader.set_priorities(rows, ones)
            done = bench.owner.trim()
            assert done is not None
            reader.refresh()
            for _ in range(2):
                assert reader.draw_by_priority(64, seed=1, beta=0.5).lsns.min() > done.data_lsn
                reader.set_priorities(rows, ones)


def test_every_task_gets_as_many(tmp_path: Path) -> None:
    with opened(tmp_path) as bench:
        play(bench, 4)
    with ReplayReader.open(tmp_path) as reader:
        tasks = [[0], [1, 2, 3, 4, 5], [6, 7]]
        draw = reader.draw_by_task(10, seed=4, tasks=tasks)
        counts = [sum(row in task for row in draw.rows.tolist()) for task in tasks]
        assert sorted(counts) == [3, 3, 4]
        with pytest.raises(StoreError, match="no task has a row"):
            reader.draw_by_task(1, seed=4, tasks=[[]])


def test_what_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreIdentityError):
        ReplayReader.open(tmp_path / "nothing")
    with opened(tmp_path) as bench:
        (lsn, *_) = play(bench, 1)
    with ReplayReader.open(tmp_path) as reader:
        with pytest.raises(StoreError, match="no frame starts at LSN"):
            reader.payloads(np.array([lsn + 8]))
        with pytest.raises(StoreError, match="no frame at LSN"):
            reader.payloads(np.array([1 << 40]))
    with opened(tmp_path / "empty"):
        reader = ReplayReader.open(tmp_path / "empty")
        with pytest.raises(StoreError, match="no row to draw"):
            reader.draw_uniform(1, seed=0)
