"""What went into a version: shares add up, zero-spread groups weigh nothing, a source that turns is the first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from buffers.view import StoreView
from configs.schema import Learner
from contracts.records import ControlRecord, Episode, Version
from learners.rows import read_shares
from loops.blame import KINDS, Account, blame, compare
from loops.lineage import Lineage
from loops.replay import Gone
from tests.unit.console.played import STEPS, play
from tests.unit.learners.builders import make_batch


class Recorded:
    """Episodes by their place. loops.replay.History."""

    def __init__(self, episodes: list[Episode]) -> None:
        self._episodes = episodes

    def decisions(self) -> list[tuple[int, ControlRecord]]:
        return []

    def episodes(self, lsns: Sequence[int]) -> list[Episode]:
        return [self._episodes[lsn] for lsn in lsns]


def account_of(rewards: list[list[float]], producers: list[str], *, steps: int, seed: int) -> Account:
    """Steps of groups with these rewards, each group from its producer."""
    account, settings = Account(), Learner(aggregation="token")
    for step in range(steps):
        rng = np.random.default_rng((seed, step))
        drawn = [[float(rng.random() < chance) for chance in group] for group in rewards]
        batch, episodes = make_batch(drawn, step=step + 1)
        owned = [replace(one, producer=producers[int(one.task_id.removeprefix("task-"))]) for one in episodes]
        version = Version(
            version=step + 1, parent=step, branch=0, step=step + 1, root_hash="", stats={"learning_rate": 0.1}
        )
        account.count(
            Recorded(owned),
            batch,
            version,
            weigh=lambda batch, episodes: read_shares(batch, episodes, settings=settings, max_tokens=8).influences(),
            gone=Gone(frozenset(), 0),
        )
    return account


PRODUCERS = ["a", "b", "c", "c"]


def test_a_producer_that_turns_its_rewards_is_the_first() -> None:
    then = account_of([[0.9] * 4] * 4, PRODUCERS, steps=30, seed=1)
    now = account_of([[0.9] * 4, [0.1] * 4, [0.9] * 4, [0.9] * 4], PRODUCERS, steps=30, seed=2)
    first, *others = compare("producer", now, then)
    assert first.name == "b"
    assert first.shift == pytest.approx(-0.8, abs=0.1)
    assert first.suspicion is not None
    assert all(one.suspicion is not None and one.suspicion < first.suspicion / 3 for one in others)
    assert sum(one.share for one in (first, *others)) == pytest.approx(1.0)


def test_what_happens_to_all_makes_nobody_suspicious() -> None:
    then = account_of([[0.9] * 4] * 4, PRODUCERS, steps=30, seed=1)
    now = account_of([[0.5] * 4] * 4, PRODUCERS, steps=30, seed=2)
    assert max(one.suspicion or 0.0 for one in compare("producer", now, then)) < 0.05


def test_without_steps_before_the_heaviest_is_the_first() -> None:
    now = account_of([[0.5] * 4] * 4, PRODUCERS, steps=10, seed=1)
    found = compare("producer", now, Account())
    assert found[0].name == "c"
    assert found[0].share_before is found[0].suspicion is None
    assert [one.share for one in found] == sorted((one.share for one in found), reverse=True)


def test_what_teaches_nothing_weighs_nothing() -> None:
    now = account_of([[1.0] * 4, [0.5] * 4], ["flat", "spread"], steps=10, seed=1)
    shares = {one.name: one.share for one in compare("producer", now, Account())}
    assert shares == {"flat": 0.0, "spread": pytest.approx(1.0)}


def test_influence_is_advantage_times_what_a_token_counts() -> None:
    batch, episodes = make_batch([[1.0, 0.0], [0.5, 0.5]])
    shares = read_shares(batch, episodes, settings=Learner(advantage="mean_only", aggregation="sequence"), max_tokens=8)
    assert shares.influences() == pytest.approx([0.5 / 4, 0.5 / 4, 0.0, 0.0])


def test_a_run(tmp_path: Path) -> None:
    view = StoreView.open(play(tmp_path) / "store")
    lineage = Lineage.of(view.decisions())
    seen: list[tuple[int, int]] = []
    found = blame(
        view,
        lineage,
        STEPS,
        weigh=lambda batch, _: np.ones(len(batch.rows)),
        last=2,
        on_step=lambda done, total: seen.append((done, total)),
    )
    assert (found.first_step, found.last_step, found.steps_before, found.episodes) == (STEPS - 1, STEPS, 2, 8)
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert found.sources.keys() == set(KINDS)
    for sources in found.sources.values():
        assert sum(one.share for one in sources) == pytest.approx(1.0)
        assert sum(one.episodes for one in sources) == 8
    (producer,) = found.sources["producer"]
    assert (producer.name, producer.share_before, producer.suspicion) == ("rollout-0.0", 1.0, 0.0)
    whole = blame(view, lineage, STEPS, weigh=lambda batch, _: np.ones(len(batch.rows)))
    assert (whole.first_step, whole.steps_before, whole.episodes) == (1, 0, 4 * STEPS)
    genesis = blame(view, lineage, 0, weigh=lambda batch, _: np.ones(len(batch.rows)))
    assert genesis.episodes == 0
