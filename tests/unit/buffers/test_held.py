"""HOLD and REVIEW: a group that is kept back is not sampled before somebody has looked at it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from threading import Event

import pytest

from buffers.view import StoreView
from contracts.errors import StoreError
from contracts.records import Feedback, Hold, Lease, Review
from tests.unit.buffers.bench import opened


def hold(lease: Lease) -> Hold:
    return Hold(lease=lease.lsn, reason="somebody is to look at it", producer="monitor")


def review(lease: Lease, *, accepted: bool) -> Review:
    return Review(lease=lease.lsn, accepted=accepted, reason="looked at", producer="a person")


def test_a_held_group_is_not_sampled_before_it_is_accepted(tmp_path: Path) -> None:
    with opened(tmp_path) as bench:
        bench.serve(0)
        first, second, third, fourth = bench.lease()
        assert bench.owner.hold(hold(first))  # before it is complete
        bench.play([first, second, third])
        assert bench.owner.hold(hold(third))  # and after
        assert bench.owner.append_batch(bench.request(1)) is None
        assert bench.owner.status()["held_groups"] == 2
        assert len(bench.lease()) == 2  # what is held holds nobody up
    with opened(tmp_path) as bench:
        bench.serve(1, step=0)
        assert bench.owner.ledger().ready == 1
        assert bench.owner.review(review(third, accepted=True))
        assert bench.owner.review(review(first, accepted=False))
        _, batch = bench.cut(1, parent_version=1)
        assert {row.lease for row in batch.rows} == {second.lsn, third.lsn}
        ledger = bench.owner.ledger()
        assert (ledger.ended["quarantined"], ledger.balanced) == (1, True)
        assert not bench.owner.hold(hold(second))  # its batch is cut
        assert not bench.owner.review(review(first, accepted=True))  # it has ended
        assert fourth.lsn not in {row.lease for row in batch.rows}
        with pytest.raises(StoreError, match="3 is no lease"):
            bench.owner.hold(Hold(lease=3, reason=""))
    with opened(tmp_path) as bench:
        assert bench.owner.ledger() == ledger
        assert StoreView.open(tmp_path).fold == bench.owner._state.fold


def test_a_held_group_that_waits_for_a_reward_may_get_it_meanwhile(tmp_path: Path) -> None:
    with opened(tmp_path) as bench:
        bench.serve(0)
        first, second, *_ = bench.lease()
        late = [bench.make(first, member, reward=None, reward_deadline=4e9) for member in first.missing]
        acks = bench.owner.append(late)
        bench.owner.hold(hold(first))
        for episode, ack in zip(late, acks, strict=True):
            feedback = Feedback(episode_id=episode.episode_id, episode_lsn=ack.lsn, reward=float(episode.member))
            bench.owner.append_feedback(feedback)
        bench.play([second])
        assert bench.owner.append_batch(bench.request(1)) is None
        bench.owner.review(review(first, accepted=True))
        _, batch = bench.cut(1)
        assert {row.lease for row in batch.rows} == {first.lsn, second.lsn}


@contextmanager
def slow_disk(monkeypatch: pytest.MonkeyPatch, log: str) -> Iterator[tuple[Event, Event]]:
    """(set when a commit of `log` is about to be synced, to be set for it to go on)."""
    began, go, sync = Event(), Event(), os.fdatasync

    def wait_and_sync(fd: int) -> None:
        if f"/{log}/" in str(Path(f"/proc/self/fd/{fd}").readlink()):
            began.set()
            assert go.wait(60)
        sync(fd)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", wait_and_sync)
        try:
            yield began, go
        finally:
            go.set()


def test_a_hold_on_its_way_keeps_its_group_out_of_a_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(tmp_path) as bench, ThreadPoolExecutor(1) as person:
        bench.serve(0)
        first, second, *_ = bench.lease()
        bench.play([first, second])
        state = bench.owner._state
        with slow_disk(monkeypatch, "data") as (began, go):
            held = person.submit(bench.owner.hold, hold(first))
            assert began.wait(60)
            with state.lock:  # so that it is durable and the fold has not heard of it yet
                go.set()
                mark = state.data.writer.sync()
                assert bench.owner._decider._cut(bench.request(1), mark) == (None, [])
        assert held.result()
        assert bench.owner.append_batch(bench.request(1)) is None
        assert bench.owner.review(review(first, accepted=True))
        assert {row.lease for row in bench.cut(1)[1].rows} == {first.lsn, second.lsn}


def test_a_hold_that_comes_while_the_batch_is_written_comes_too_late(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(tmp_path) as bench, ThreadPoolExecutor(2) as others:
        bench.serve(0)
        first, second, *_ = bench.lease()
        bench.play([first, second])
        with slow_disk(monkeypatch, "control") as (began, go):
            cut = others.submit(bench.cut, 1)
            assert began.wait(60)
            held = others.submit(bench.owner.hold, hold(first))
            wait([held], timeout=0.2)  # longer than it would take not to wait for the batch
            go.set()
        assert {row.lease for row in cut.result()[1].rows} == {first.lsn, second.lsn}
        assert not held.result()
        ledger = bench.owner.ledger()
    with opened(tmp_path) as bench:
        assert bench.owner.ledger() == ledger
        assert bench.owner.append_batch(bench.request(2)) is None
