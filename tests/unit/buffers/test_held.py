"""HOLD and REVIEW: a group that is kept back is not sampled before somebody has looked at it."""

from __future__ import annotations

from pathlib import Path

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
