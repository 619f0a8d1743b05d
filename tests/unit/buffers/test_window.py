"""Learning from groups once more: what is drawn, what it counts, and that the log's records alone say so."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from buffers.erasure import Choice, erase
from buffers.fold import leases_of
from buffers.owner import StoreOwner
from buffers.reading import Records
from buffers.tables import Experience
from buffers.verification import verify
from buffers.view import StoreView
from buffers.window import HIGHEST_PRIORITY, Candidate, draw, list_candidates
from configs.schema import RunConfig, Store
from contracts.errors import FencedError, StoreError
from contracts.records import Batch, Checkpoint, Kind, Priority, Row, Skip
from tests.unit.buffers.bench import GROUP_SIZE, Bench, name_task, opened, small_config

WINDOW = 3


def sampling(sampler: str, **store: Any) -> RunConfig:
    config = small_config(max_staleness=100, sampler=sampler, replayed_window=WINDOW, **store)
    learner = config.learner.model_copy(update={"groups_per_step": 4})  # half of them new
    return config.model_copy(update={"learner": learner})


def settings(sampler: str, beta: float = 0.5) -> Store:
    return Store.model_validate({"sampler": sampler, "importance_exponent": beta})


class Learning(Bench):
    """Steps as a learner takes them; `priorities` are those that it gives the new groups of each."""

    def __init__(self, bench: Bench, *, step: int = 0, version: int = 0) -> None:
        self.__dict__.update(bench.__dict__)
        self.step = step
        self.serve(version, step=step)

    def learn(self, *priorities: int, rewards: tuple[float, float] = (0.0, 1.0), skip: bool = False) -> Batch:
        self.step += 1
        for lease in self.lease(max_tasks=2):
            self.owner.append([self.make(lease, member, reward=rewards[member]) for member in lease.missing])
        parent = int(str(self.owner.status()["head"]))
        lsn, batch = self.cut(self.step, parent_version=parent, num_groups=4, max_staleness=100, seed=self.step)
        if priorities:
            self.prioritise(leases_of(batch), priorities)
        if skip:
            self.owner.decide(Skip(batch_lsn=lsn, step=self.step, branch=0, reason="it fails"), self.session)
        else:
            self.serve(parent + 1, step=self.step, batch_lsn=lsn)
        return batch

    def prioritise(self, leases: list[int], priorities: tuple[int, ...]) -> int:
        return self.owner.decide(Priority(leases=tuple(leases), priorities=priorities), self.session)


def drawn(batch: Batch) -> list[int]:
    """Leases that are learned from once more, in the order in which they were drawn."""
    return list(dict.fromkeys(row.lease for row in batch.rows if row.replayed))


def derive(folder: Path, config: RunConfig) -> Iterator[tuple[Batch, tuple[Row, ...]]]:
    """(each batch, what it should have drawn), out of the records of the log and nothing else."""
    with StoreView.open(folder) as view:
        decisions = view.decisions()
        records = Records(folder, uuid=view.uuid)
        priorities = [
            (lsn, record) for lsn, record in records.scan_data(0, view.data_lsn) if isinstance(record, Priority)
        ]
    skips = {record.batch_lsn: lsn for lsn, record in decisions if isinstance(record, Skip)}
    batches = [(lsn, record) for lsn, record in decisions if isinstance(record, Batch)]
    for lsn, batch in batches:
        newest: dict[int, int] = {}
        for given_lsn, given in priorities:
            if given_lsn < batch.data_lsn:
                newest.update(zip(given.leases, given.priorities, strict=True))
        candidates = [
            Candidate(one.rows, newest.get(one.lease))
            for before_lsn, before in batches
            if batch.step - config.store.replayed_window <= before.step < batch.step
            and skips.get(before_lsn, lsn) >= lsn
            for one in list_candidates(before)
        ]
        num = config.store.count_replayed(config.learner.groups_per_step)
        yield batch, draw(candidates, num, settings=config.store, seed=(batch.seed, batch.step))


@pytest.mark.parametrize("sampler", ["uniform", "prioritised"])
def test_records_alone_tell_what_was_drawn(tmp_path: Path, sampler: str) -> None:
    config = sampling(sampler)
    store = tmp_path / "store"
    with opened(store, config=config) as plain:
        bench = Learning(plain)
        assert drawn(bench.learn(5, 1)) == []
        bench.learn(rewards=(1.0, 1.0))
        bench.learn(100, 0, skip=True)
        for number in range(4):
            bench.learn(number, 7)
    with opened(store, config=config) as plain:  # another owner draws from the same records
        bench = Learning(plain, step=bench.step, version=bench.step - 1)  # one was skipped
        for number in range(4):
            batch = bench.learn(*(() if number == 2 else (3, HIGHEST_PRIORITY)))
            assert len(drawn(batch)) == 2
            assert bench.owner.append_batch(bench.request(bench.step, parent_version=0, num_groups=4)) == (
                bench.owner._state.fold.batch_lsns[0, bench.step],
                batch,
            )
        assert bench.owner.ledger().balanced
    pairs = list(derive(store, config))
    assert len(pairs) == bench.step
    for batch, expected in pairs:
        assert tuple(row for row in batch.rows if row.replayed) == expected
    assert sum(bool(expected) for _, expected in pairs) >= 8
    assert not verify(tmp_path).defects


def test_a_group_ends_once_however_often_it_is_learned_from(tmp_path: Path) -> None:
    with opened(tmp_path, config=sampling("uniform")) as plain:
        bench = Learning(plain)
        batches = [bench.learn() for _ in range(6)]
        ledger = bench.owner.ledger()
        assert ledger.ended["trained"] == sum(len(leases_of(batch)) for batch in batches) == 12
        assert ledger.balanced
        assert ledger.episodes_trained == sum(len(batch.rows) for batch in batches) == 12 * GROUP_SIZE + 5 * 4
        with StoreView.open(tmp_path) as view:
            assert view.fold == bench.owner._state.fold
    endings = Experience(tmp_path).read("endings").read_all()
    assert sorted(endings["lease"].to_pylist()) == sorted(lease for batch in batches for lease in leases_of(batch))


def test_what_was_skipped_or_has_no_spread_or_left_the_window_is_not_drawn(tmp_path: Path) -> None:
    with opened(tmp_path, config=sampling("uniform")) as plain:
        bench = Learning(plain)
        alike = leases_of(bench.learn(rewards=(1.0, 1.0)))
        assert drawn(bench.learn(skip=True)) == []
        third = bench.learn()
        assert (drawn(third), len(third.rows)) == ([], 2 * GROUP_SIZE)  # nothing to draw: a smaller batch
        steps = [third, *(bench.learn() for _ in range(6))]
        for place in range(1, len(steps)):
            recent = [lease for batch in steps[max(0, place - WINDOW) : place] for lease in leases_of(batch)]
            again = drawn(steps[place])
            assert len(again) == 2
            assert set(again) <= set(recent)
            assert not set(again) & set(alike)


def test_priorities_decide_and_the_newest_counts(tmp_path: Path) -> None:
    with opened(tmp_path, config=sampling("prioritised")) as plain:
        bench = Learning(plain)
        first = leases_of(bench.learn(0, 1))
        assert drawn(bench.learn(0, 0)) == first[1:]
        bench.prioritise(first, (9, 0))
        assert drawn(bench.learn(0, 0)) == first[:1]
        fresh = leases_of(bench.learn())  # no PRIORITY names them
        bench.prioritise(first, (0, 0))
        assert sorted(drawn(bench.learn())) == sorted(fresh)


def test_a_priority_that_cannot_be_is_refused(tmp_path: Path) -> None:
    with opened(tmp_path, config=sampling("prioritised")) as plain:
        bench = Learning(plain)
        lease = leases_of(bench.learn(1, 1))[0]
        before = bench.owner.status()["data_lsn"]
        for leases, priorities, told in (
            ([lease], (1, 2), "1 leases have 2 priorities"),
            ([lease], (-1,), "is no priority"),
            ([lease], (HIGHEST_PRIORITY + 1,), "is no priority"),
            ([lease + 8], (1,), "is no lease"),
        ):
            with pytest.raises(StoreError, match=told):
                bench.prioritise(leases, priorities)
        with pytest.raises(FencedError):
            bench.owner.decide(Priority(leases=(lease,), priorities=(1,)), bench.session - 1)
        assert bench.owner.status()["data_lsn"] == before


def make_candidates(*priorities: int | None) -> list[Candidate]:
    return [
        Candidate((Row(episode_lsn=lease, reward_lsn=lease, lease=lease),), priority)
        for lease, priority in enumerate(priorities)
    ]


def test_draws_are_in_proportion_to_priorities() -> None:
    candidates = make_candidates(1, 3, 0, None)  # None: as the highest
    tries = 3_000
    found = Counter(
        row.lease
        for seed in range(tries)
        for row in draw(candidates, 1, settings=settings("prioritised"), seed=(seed, 1))
    )
    assert found[2] == 0
    assert all(abs(found[lease] / tries - share / 7) < 0.03 for lease, share in ((0, 1), (1, 3), (3, 3)))
    even = Counter(
        row.lease for seed in range(tries) for row in draw(candidates, 1, settings=settings("uniform"), seed=(seed, 1))
    )
    assert all(abs(even[lease] / tries - 0.25) < 0.03 for lease in range(4))


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_weights_make_up_for_being_drawn_more_often(beta: float) -> None:
    candidates = make_candidates(1, 2, 4, 8)
    rows = draw(candidates, 9, settings=settings("prioritised", beta), seed=(7, 1))
    assert sorted(row.lease for row in rows) == [0, 1, 2, 3]  # each once
    shares = {lease: 2**lease / 15 for lease in range(4)}
    unscaled = {lease: (4 * share) ** -beta for lease, share in shares.items()}
    for row in rows:
        assert row.replayed
        assert row.weight == pytest.approx(unscaled[row.lease] / max(unscaled.values()))
    assert {row.weight for row in draw(candidates, 9, settings=settings("uniform", beta), seed=(7, 1))} == {1.0}


def test_there_may_be_nothing_to_draw() -> None:
    for sampler in ("uniform", "prioritised"):
        assert draw([], 3, settings=settings(sampler), seed=(1, 1)) == ()
    assert draw(make_candidates(0, 0), 3, settings=settings("prioritised"), seed=(1, 1)) == ()


def test_what_may_be_drawn_is_not_trimmed(tmp_path: Path) -> None:
    config = sampling("uniform", retention={"max_episodes": 1})
    with opened(tmp_path / "store", config=config) as plain:
        bench = Learning(plain)
        window = bench.owner._retention._window
        assert window.floor == 0  # before the first batch nobody knows
        batches = [bench.learn() for _ in range(WINDOW + 2)]
        oldest = batches[-1 - WINDOW]
        assert window.floor == min(leases_of(oldest))
        assert bench.owner._retention._records_end() <= window.floor


def test_a_deleted_index_changes_no_draw(tmp_path: Path) -> None:
    """The owner of a store without one draws what the owner of the whole store draws."""
    config = sampling("prioritised")
    with opened(tmp_path / "whole", config=config) as plain:
        bench = Learning(plain)
        for number in range(3):
            bench.learn(number + 1, 5)
        for lease in bench.lease(max_tasks=2):
            bench.play([lease])
    shutil.copytree(tmp_path / "whole", tmp_path / "rebuilt")
    shutil.rmtree(tmp_path / "rebuilt" / "index")
    cuts = []
    for name in ("whole", "rebuilt"):
        owner = StoreOwner.open(tmp_path / name, config=config, source=name_task)
        try:
            _, batch = Bench(owner).cut(4, parent_version=3, num_groups=4, max_staleness=100)
            cuts.append(batch.rows)
        finally:
            owner.close()
    assert cuts[0] == cuts[1]
    assert any(row.replayed for row in cuts[0])


def test_erased_groups_are_not_drawn(tmp_path: Path) -> None:
    config = sampling("uniform")
    with opened(tmp_path / "store", config=config) as plain:
        bench = Learning(plain)
        first = bench.learn()
        second = bench.learn()
        (tmp_path / "checkpoints").mkdir()
        kept = Checkpoint(version=2, step=2, branch=0, folder="checkpoints", root_hash="", state_hash="")
        bench.owner.decide(kept, bench.session)
        for lease in bench.lease(max_tasks=2):
            bench.play([lease])
    gone = frozenset(row.episode_lsn for batch in (first, second) for row in batch.rows[:1])
    erase(tmp_path, Choice(lsns=gone), reason="asked for")
    with opened(tmp_path / "store", config=config) as plain:
        _, batch = plain.cut(3, parent_version=2, num_groups=4, max_staleness=100)
        assert len(drawn(batch)) == 2
        assert not {row.episode_lsn for row in batch.rows} & gone


def test_a_priority_lies_with_the_experience(tmp_path: Path) -> None:
    with opened(tmp_path, config=sampling("prioritised")) as plain:
        bench = Learning(plain)
        leases = leases_of(bench.learn())
        lsn = bench.prioritise(leases, (1, 2))
        with StoreView.open(tmp_path) as view:
            record = dict(Records(tmp_path, uuid=view.uuid).scan_data(0, view.data_lsn))[lsn]
            assert dict(view.fold.priorities.items()) == dict(zip(leases, (1, 2), strict=True))
        assert record == Priority(leases=tuple(leases), priorities=(1, 2))
        assert bench.owner.decisions(kinds=[Kind.PRIORITY]) == []
