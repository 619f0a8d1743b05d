"""Recorded batches folded again: with nothing left out to the logged hashes; what is left out goes by whole groups."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from buffers.view import StoreView
from contracts.errors import RunFolderError
from contracts.records import Batch, Branch, Checkpoint, ControlRecord, Row, Version
from loops.ancestry import Ancestry
from loops.refold import Exclusion, checkpoint_before, leave_out, refold
from loops.replay import computed_batches
from tests.crash.plain import NumpyLearner, log_softmax
from tests.unit.console.played import STEPS, play


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return play(tmp_path_factory.mktemp("refold"))


def test_nothing_left_out_gives_the_logged_hashes_from_any_checkpoint(folder: Path) -> None:
    view = StoreView.open(folder / "store")
    records = view.decisions()
    logged = {one.step: one.root_hash for _, one in records if isinstance(one, Version)}
    for before in (1, STEPS):
        start = checkpoint_before(records, folder=folder, step=before)
        assert start.step < before
        steps = refold(view, folder=folder, learner=NumpyLearner(), start=start)
        assert {one.step: one.root_hash for one in steps} == {n: logged[n] for n in range(start.step + 1, STEPS + 1)}
        assert all(one.num_rows == 4 and one.num_left_out == 0 for one in steps)
    assert checkpoint_before(records, folder=folder, step=STEPS).step > 0
    with pytest.raises(RunFolderError, match="none of the checkpoints before it"):
        checkpoint_before(records, folder=folder, step=0)


def test_a_group_left_out_changes_what_comes_after_and_an_empty_batch_changes_nothing(folder: Path) -> None:
    view = StoreView.open(folder / "store")
    records = view.decisions()
    start = checkpoint_before(records, folder=folder, step=1)
    batches = [batch for _, batch in computed_batches(records)]
    whole = refold(view, folder=folder, learner=NumpyLearner(), start=start)
    third, fourth = batches[2], batches[3]
    gone = Exclusion(
        leases=frozenset(row.lease for row in third.rows), episode_lsns=frozenset((fourth.rows[0].episode_lsn,))
    )
    seen: list[list[float]] = []
    learner = NumpyLearner()
    steps = refold(
        view,
        folder=folder,
        learner=learner,
        start=start,
        until=5,
        excludes=gone,
        on_step=lambda _: seen.append(learner.weights(0).tensors["logits"].tolist()),
    )
    assert [(one.step, one.num_rows, one.num_left_out) for one in steps] == [
        (1, 4, 0), (2, 4, 0), (3, 0, 4), (4, 2, 2), (5, 4, 0)
    ]  # fmt: skip
    assert [one.root_hash for one in steps[:2]] == [one.root_hash for one in whole[:2]]
    assert steps[2].root_hash == steps[1].root_hash
    assert seen[2] == seen[1] != seen[3]
    by_hand = NumpyLearner()
    by_hand.logits = log_softmax(by_hand.logits) * 0
    for batch in (batches[0], batches[1], dataclasses.replace(fourth, rows=fourth.rows[2:]), batches[4]):
        by_hand.step(batch, view.episodes([row.reward_lsn for row in batch.rows]))
    assert steps[-1].root_hash == by_hand.root_hash()


def make_batch(*leases: int, micro_batches: tuple[int, ...] = ()) -> Batch:
    rows = tuple(
        Row(episode_lsn=1000 + place, reward_lsn=1000 + place, lease=lease) for place, lease in enumerate(leases)
    )
    return Batch(
        branch=0,
        step=1,
        parent_version=0,
        rows=rows,
        zero_spread=(2,),
        micro_batches=micro_batches,
        remembered=rows[-1:],
    )


def test_what_hangs_on_a_group_goes_with_it() -> None:
    batch = make_batch(1, 1, 2, 2, 3, 3, micro_batches=(3, 1, 2))
    assert leave_out(batch, Exclusion()) is batch
    left = leave_out(batch, Exclusion(episode_lsns=frozenset((1003,))))
    assert [row.lease for row in left.rows] == [1, 1, 3, 3]
    assert (left.zero_spread, left.micro_batches, left.remembered) == ((), (2, 2), batch.remembered)
    left = leave_out(batch, Exclusion(leases=frozenset((3,))))
    assert (left.zero_spread, left.micro_batches, left.remembered) == ((2,), (3, 1), ())
    # A stored success of an excluded group, in the place of another group's first member, takes that group along.
    replayed = dataclasses.replace(
        batch, rows=(Row(episode_lsn=7, reward_lsn=7, lease=1, replayed=True), *batch.rows[1:])
    )
    assert [row.lease for row in leave_out(replayed, Exclusion(episode_lsns=frozenset((7,)))).rows] == [2, 2, 3, 3]


def test_the_ancestry_of_a_branch_of_a_branch() -> None:
    def version(number: int, step: int, branch: int) -> Version:
        return Version(version=number, parent=number - 1, branch=branch, step=step, root_hash=str(number))

    records: list[ControlRecord] = [version(step, step, 0) for step in range(6)]
    records += [Branch(branch=1, parent_branch=0, from_version=3, reason="rewind"), version(6, 4, 1), version(7, 5, 1)]
    records += [Branch(branch=2, parent_branch=1, from_version=6, reason="rewind"), version(8, 5, 2)]
    numbered = list(enumerate(records))
    found = {
        branch: [
            one.version for one in records if isinstance(one, Version) and Ancestry.of(numbered, branch=branch).has(one)
        ]
        for branch in (0, 1, 2, None)
    }
    assert found == {0: [0, 1, 2, 3, 4, 5], 1: [0, 1, 2, 3, 6, 7], 2: [0, 1, 2, 3, 6, 8], None: [0, 1, 2, 3, 6, 8]}
    # A branch from a version of its grandparent's takes nothing of its parent.
    numbered.append((99, Branch(branch=3, parent_branch=2, from_version=2, reason="rewind")))
    assert [one.version for one in records if isinstance(one, Version) and Ancestry.of(numbered).has(one)] == [0, 1, 2]
    at_fork = Checkpoint(version=3, step=3, branch=0, folder="", root_hash="", state_hash="")
    assert Ancestry.of(numbered, branch=1).has(at_fork)
