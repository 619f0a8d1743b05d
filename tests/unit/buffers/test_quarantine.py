"""Episodes that no learner may read: each kept with its reason, and its group never sampled."""

from __future__ import annotations

import dataclasses
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from buffers.codec import decode
from buffers.view import StoreView
from contracts.errors import StoreError
from contracts.records import (
    Closed,
    Disposition,
    Episode,
    Fault,
    Feedback,
    Hold,
    Kind,
    Priority,
    Purpose,
    Quarantined,
    Served,
    Span,
    StopReason,
)
from tests.unit.buffers.bench import make_step, opened
from tests.unit.buffers.samples import STRETCH

Spoil = Callable[[Episode], dict[str, Any]]
DOUBLE: Any = np.float64
LIST: Any = [0.0, 0.0, 0.0]
HUGE = np.zeros((64 << 20) // 8, dtype=np.int32)
INVALID: dict[str, tuple[Spoil, Fault, str]] = {
    "a log-prob that is not finite": (
        lambda episode: {
            "steps": (dataclasses.replace(make_step(), log_probs=np.array([0, np.nan, 0], dtype=np.float32)),)
        },
        Fault.LOG_PROB,
        "a log-probability is not finite",
    ),
    "too few log-probs": (
        lambda episode: {"steps": (dataclasses.replace(make_step(), log_probs=np.zeros(2, dtype=np.float32)),)},
        Fault.SHAPE,
        "3 action tokens have 2 log_probs",
    ),
    "doubles": (
        lambda episode: {"steps": (dataclasses.replace(make_step(), log_probs=np.zeros(3, dtype=DOUBLE)),)},
        Fault.DTYPE,
        "log_probs is float64",
    ),
    "a matrix of tokens": (
        lambda episode: {"steps": (dataclasses.replace(make_step(), action=np.zeros((1, 3), dtype=np.int32)),)},
        Fault.SHAPE,
        "2 dimensions, not one",
    ),
    "text that the format cannot hold": (
        lambda episode: {"reward_code": "\ud800"},
        Fault.UNREADABLE,
        "cannot be kept",
    ),
    "a part of a reward that is no number": (
        lambda episode: {"reward_parts": {"length": "long"}},
        Fault.UNREADABLE,
        "its reward_parts is {'length': 'long'}, not dict[str, float]",
    ),
    "a reward that is text": (
        lambda episode: {"reward": "good"},
        Fault.UNREADABLE,
        "its reward is 'good', not a number, or none",
    ),
    "a version of more than 64 bits": (
        lambda episode: {
            "spans": (Span(start=0, version=1 << 63),),
            "stop_reason": StopReason.ENV_ERROR,
            "reward": None,
        },
        Fault.UNREADABLE,
        "its spans is (Span(start=0, version=9223372036854775808),)",
    ),
    "a purpose by its name": (lambda episode: {"purpose": "train"}, Fault.UNREADABLE, "'train', not a Purpose"),
    "a step that is none": (lambda episode: {"steps": ("a step",)}, Fault.UNREADABLE, "its steps is ('a step',)"),
    "a list of log-probs": (
        lambda episode: {"steps": (dataclasses.replace(make_step(), log_probs=LIST),)},
        Fault.DTYPE,
        "log_probs is a list, not an array",
    ),
    "a list of rewards": (
        lambda episode: {"steps": (dataclasses.replace(STRETCH, rewards=LIST),)},
        Fault.DTYPE,
        "rewards is a list, not an array",
    ),
    "a time that is none": (lambda episode: {"wall_time": float("nan")}, Fault.UNREADABLE, "its wall_time is nan"),
    "a deadline that is no time": (
        lambda episode: {"reward": None, "reward_deadline": float("inf")},
        Fault.REWARD,
        "its reward_deadline is inf",
    ),
    "a lease that is text": (lambda episode: {"lease": "first"}, Fault.LEASE, "its lease is 'first'"),
    "a member of more than 64 bits": (lambda episode: {"member": 1 << 63}, Fault.LEASE, "its member is 92233"),
    "a stretch whose observations are not finite": (
        lambda episode: {
            "steps": (dataclasses.replace(STRETCH, observation=np.full((3, 2), np.inf, dtype=np.float32)),)
        },
        Fault.OBSERVATION,
        "an observation or a reward",
    ),
    "more than a frame holds": (
        lambda episode: {
            "steps": (dataclasses.replace(make_step(), observation=HUGE, action=HUGE, log_probs=HUGE.view(np.float32)),)
        },
        Fault.OVERSIZED,
        "a frame holds 67108864",
    ),
    "no step": (lambda episode: {"steps": ()}, Fault.EMPTY, "no step"),
    "no action": (lambda episode: {"steps": (make_step(0),)}, Fault.EMPTY, "no step has an action"),
    "an infinite reward": (lambda episode: {"reward": float("inf")}, Fault.REWARD, "its reward is inf"),
    "a reward that nobody waits for": (lambda episode: {"reward": None}, Fault.REWARD, "nor a deadline"),
    "a reward for an error": (
        lambda episode: {"stop_reason": StopReason.ENV_ERROR},
        Fault.REWARD,
        "although it ended with env_error",
    ),
    "no span": (lambda episode: {"spans": ()}, Fault.SPANS, "not at 0"),
    "spans that start late": (lambda episode: {"spans": (Span(start=1, version=0),)}, Fault.SPANS, "not at 0"),
    "spans that fall": (
        lambda episode: {"spans": (Span(start=0, version=0), Span(start=0, version=1))},
        Fault.SPANS,
        "do not rise",
    ),
    "a span behind the end": (
        lambda episode: {"spans": (Span(start=0, version=0), Span(start=3, version=0))},
        Fault.SPANS,
        "token 3 of 3",
    ),
    "a version that nobody made": (
        lambda episode: {"spans": (Span(start=0, version=17),)},
        Fault.VERSION,
        "knows no version 17",
    ),
    "another environment": (lambda episode: {"environment": "moon"}, Fault.ENVIRONMENT, "it is from 'moon'"),
    "an evaluation": (lambda episode: {"purpose": Purpose.EVALUATE}, Fault.PURPOSE, "its purpose is evaluate"),
    "no name": (lambda episode: {"episode_id": ""}, Fault.IDENTITY, "no episode_id"),
    "no lease": (lambda episode: {"lease": 3}, Fault.LEASE, "3 is no lease"),
    "no such member": (lambda episode: {"member": 2}, Fault.LEASE, "members 0 to 1, not member 2"),
    "another task": (lambda episode: {"task_id": "task/9"}, Fault.LEASE, "task/9"),
}


@pytest.mark.parametrize(("spoil", "fault", "reason"), INVALID.values(), ids=INVALID.keys())
def test_a_bad_episode_is_kept_apart_and_its_group_is_never_sampled(
    tmp_path: Path, spoil: Spoil, fault: Fault, reason: str
) -> None:
    with opened(tmp_path) as bench:
        bench.serve(0)
        leases = bench.lease()
        first, others = leases[0], leases[1:]
        good, bad = bench.make(first, 0), bench.make(first, 1)
        spoilt = dataclasses.replace(bad, **spoil(bad))
        one, two = bench.owner.append([good, spoilt])
        assert (one.fault, two.fault, two.duplicate) == (None, fault, False)
        (again,) = bench.owner.append([spoilt])
        assert (again.lsn, again.fault, again.duplicate) == (two.lsn, fault, True)
        if fault is Fault.LEASE:  # nobody's try: the member is still to come
            bench.owner.append([bench.make(first, 1)])
        bench.play(others)
        _, batch = bench.cut(1)
        assert two.lsn not in [row.episode_lsn for row in batch.rows]
        assert (first.lsn in {row.lease for row in batch.rows}) == (fault is Fault.LEASE)
        ledger = bench.owner.ledger()
        assert ledger.quarantined == {fault.value: 1}
        assert ledger.ended["quarantined"] == (fault is not Fault.LEASE)
        assert ledger.balanced
        with pytest.raises(StoreError, match="is a Quarantined, not an Episode"):
            bench.owner.read([two.lsn])
    with opened(tmp_path) as bench:
        assert bench.owner.ledger() == ledger
        (kept,) = [record for _, record in bench.owner._records.scan_data(two.lsn, two.lsn + 1)]
    assert isinstance(kept, Quarantined)
    assert reason in kept.detail
    assert (kept.fault, kept.task_id, kept.producer) == (fault, spoilt.task_id, "rollout-0")
    assert (kept.num_bytes == 0) == ("cannot be kept" in reason or "a list" in reason)


def test_the_whole_bad_episode_can_be_looked_at(tmp_path: Path) -> None:
    with opened(tmp_path) as bench:
        bench.serve(0)
        (lease, *_) = bench.lease()
        bad = bench.make(lease, 0, reward=float("inf"))
        (ack,) = bench.owner.append([bad])
        frame = bench.owner._records.data.read(ack.lsn)
    kept = decode(frame.kind, frame.payload)
    assert isinstance(kept, Quarantined)
    inside = decode(Kind.EPISODE, kept.payload.tobytes())
    assert isinstance(inside, Episode)
    assert dataclasses.replace(inside, steps=()) == dataclasses.replace(bad, steps=())


ALIKE: dict[str, Spoil] = {
    "a reward": lambda episode: {"reward": np.float32(0.1)},
    "a whole reward": lambda episode: {"reward": 1},
    "whole numbers": lambda episode: {
        "lease": np.int64(episode.lease),
        "member": np.int32(episode.member),
        "producer_epoch": np.int64(episode.producer_epoch),
        "seq": np.uint64(episode.seq),
    },
    "text": lambda episode: {"producer": np.str_(episode.producer), "task_id": np.str_(episode.task_id)},
    "a span": lambda episode: {"spans": (Span(start=np.int8(0), version=np.int64(0)),)},  # type: ignore[arg-type]
    "lists": lambda episode: {"spans": list(episode.spans), "steps": list(episode.steps)},
    "a deadline": lambda episode: {"reward": None, "reward_deadline": np.float32(2e9)},
    "a part of a reward": lambda episode: {"reward_parts": {"length": np.float32(0.1)}},
}


@pytest.mark.parametrize("respell", ALIKE.values(), ids=ALIKE.keys())
def test_numbers_of_another_library_are_taken_as_what_will_be_read_back(tmp_path: Path, respell: Spoil) -> None:
    """What memory has of them is what a start finds, to the byte of the index."""
    with opened(tmp_path) as bench:
        bench.serve(0)
        (lease, *_) = bench.lease()
        plain = bench.make(lease, 1)
        spelt = dataclasses.replace(plain, **respell(plain))
        acks = bench.owner.append([bench.make(lease, 0), spelt])
        assert [(ack.fault, ack.duplicate) for ack in acks] == [(None, False)] * 2
        (again,) = bench.owner.append([spelt])
        assert (again.lsn, again.duplicate) == (acks[1].lsn, True)
        state = bench.owner._state
        state.index.flush()
        assert state.index._thread.is_alive()
        tables = state.index._index.read_all()
        with StoreView.open(tmp_path) as view:
            assert view.fold == state.fold
        ledger = bench.owner.ledger()
    shutil.rmtree(tmp_path / "index")
    with opened(tmp_path) as bench:
        assert bench.owner.ledger() == ledger
        again_tables = bench.owner._state.index._index.read_all()
        assert {name: again_tables[name] for name in ("groups", "producers", "rows", "tasks")} == {
            name: tables[name] for name in ("groups", "producers", "rows", "tasks")
        }


def test_a_value_that_is_none_is_refused_in_one_sentence(tmp_path: Path) -> None:
    """Of what is not an episode: it has no member whose place it could take."""
    with opened(tmp_path) as bench:
        bench.serve(0)
        (lease, *_) = bench.lease()
        (ack, *_) = bench.play([lease])
        (episode,) = bench.owner.read([ack.lsn])
        good = Feedback(episode_id=episode.episode_id, episode_lsn=ack.lsn, reward=0.5)
        end = bench.owner.status()["data_lsn"]
        wrong: Any
        for name, wrong, said in (
            ("reward", "0.5", "its reward is '0.5', not a number"),
            ("reward", float("nan"), "its reward is nan"),
            ("episode_lsn", 1 << 63, "its episode_lsn is 9223372036854775808, not a whole number of 64 bits"),
            ("episode_lsn", "8", "its episode_lsn is '8'"),
            ("producer", 7, "its producer is 7, not text"),
            ("wall_time", float("inf"), "its wall_time is inf, not seconds since 1970"),
        ):
            with pytest.raises(StoreError, match=re.escape(said)):
                bench.owner.append_feedback(dataclasses.replace(good, **{name: wrong}))
        for lease_lsn in (-5, "8", 1 << 63):
            with pytest.raises(StoreError):
                bench.owner.hold(Hold(lease=lease_lsn, reason="look"))  # type: ignore[arg-type]
            with pytest.raises(StoreError):
                bench.owner.decide(Priority(leases=(lease_lsn,), priorities=(1,)), bench.session)  # type: ignore[arg-type]
        with pytest.raises(StoreError, match="its gap is 'wide', not a number"):
            bench.owner.decide(Served(version=0, gap="wide"), bench.session)  # type: ignore[arg-type]
        assert bench.owner.status()["data_lsn"] == end
        wrong = np.float32(0.1)
        lsn = bench.owner.append_feedback(dataclasses.replace(good, reward=wrong))
        state = bench.owner._state
        state.index.flush()
        assert state.index._thread.is_alive()
        assert state.index.data_lsn > lsn
        member = state.fold.groups[lease.lsn].members[0]
        assert (type(member.reward), member.reward) == (float, float(np.float32(0.1)))


def test_an_engine_error_without_tokens_is_kept_and_quarantines_its_group(tmp_path: Path) -> None:
    with opened(tmp_path) as bench:
        bench.serve(0)
        (lease, *_) = bench.lease()
        bench.owner.append([bench.make(lease, 0)])
        failed = bench.make(lease, 1, steps=(make_step(0),), stop_reason=StopReason.ENGINE_ERROR, reward=None)
        bench.owner.append([dataclasses.replace(failed, spans=(Span(start=0, version=-1),))])
        assert bench.owner.append_batch(bench.request(1)) is None
        ledger = bench.owner.ledger()
        assert (ledger.ended["quarantined"], ledger.episodes) == (1, 2)
        ((_, closed),) = bench.owner.decisions(kinds=[Kind.CLOSED])
        assert isinstance(closed, Closed)
        assert (closed.leases, closed.disposition) == ((lease.lsn,), Disposition.QUARANTINED)
