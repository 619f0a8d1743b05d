"""A run over three shards, one of which dies at every point at which the run touches one, and comes back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from buffers.addresses import address, part_of, shard_of
from buffers.fold import Fold
from buffers.groups import Stage
from buffers.owner import StoreOwner
from contracts.errors import StoreUnreachableError
from contracts.records import Batch, Disposition, Kind, Skip, Version
from tests.crash.sharded import NUM_SHARDS, ShardedRun, Wire, sharded_config

STEPS = 4
AWAY = 60  # passes; a step takes about 80
TRAINED = (Disposition.TRAINED, Disposition.ZERO_SPREAD)


def fold_of(owner: StoreOwner) -> Fold:
    return owner._state.fold


def versions(owner: StoreOwner) -> dict[int, str]:
    made = [record for _, record in owner.decisions(kinds=[Kind.VERSION]) if isinstance(record, Version)]
    assert len({version.version for version in made}) == len(made), "a version number was used twice"
    assert len({version.step for version in made}) == len(made), "a step made two versions"
    return {version.step: version.root_hash for version in made}


def check(owners: Sequence[StoreOwner], *, heard: Sequence[tuple[str, int]], where: str) -> None:
    """Nothing acknowledged is lost; a group is in one batch at most, and its shard says of it what the batch says."""
    for episode_id, lsn in heard:
        (episode,) = owners[shard_of(lsn)].read([lsn % address(1, 0)])
        assert episode.episode_id == episode_id, where
    decided = [(lsn, one) for lsn, one in owners[0].decisions(kinds=[Kind.BATCH]) if isinstance(one, Batch)]
    skipped = {one.batch_lsn for _, one in owners[0].decisions(kinds=[Kind.SKIP]) if isinstance(one, Skip)}
    assert not skipped, where
    used: Counter[int] = Counter(lease for _, batch in decided for lease in {row.lease for row in batch.rows})
    assert set(used.values()) <= {1}, f"{where}: a group is in two batches"
    for shard, owner in enumerate(owners):
        fold, ledger = fold_of(owner), owner.ledger()
        assert ledger.balanced, where
        assert fold.num_doubled == fold.num_unresolved == 0, where
        assert not fold.stages[Stage.BATCHED], where
        parts = [part_of(batch, shard=shard) for _, batch in decided]
        assert ledger.episodes_trained == sum(len(part.rows) for part in parts), f"{where}: shard {shard}"
        for part in parts:
            for row in part.rows:
                assert fold.groups[row.lease].disposition in TRAINED, f"{where}: shard {shard}"
            for drop in part.dropped:
                assert fold.groups[drop.lease].disposition is drop.disposition, f"{where}: shard {shard}"


def finish(folder: Path, *, mode: str) -> ShardedRun:
    """Open what there is, recover, and learn on to the end; nobody dies."""
    run = ShardedRun(folder, config=sharded_config(mode=mode, steps=STEPS), wire=Wire())
    run.go()
    return run


@pytest.mark.timeout(900)
@pytest.mark.parametrize("mode", ["sync", "async"])
@pytest.mark.parametrize("stride", [61, pytest.param(1, marks=pytest.mark.slow)])
def test_a_shard_that_dies_at_any_point_costs_nothing(tmp_path: Path, mode: str, stride: int) -> None:
    """The others go on; it comes back and catches up, in the run or at the next start."""
    point, num_points, most = 1, 0, 10**6
    while point <= most:
        folder = tmp_path / f"point-{point}"
        folder.mkdir()
        victim = 1 + point % (NUM_SHARDS - 1)
        run = ShardedRun(
            folder, config=sharded_config(mode=mode, steps=STEPS), wire=Wire(point=point, victim=victim, away=AWAY)
        )
        run.go()
        most = min(most, run.wire.passed)
        made = versions(run.first)
        assert made.keys() == set(range(STEPS + 1)), f"point {point}"
        run.close()
        after = finish(folder, mode=mode)
        assert versions(after.owners[0]) == made, f"point {point}: recovery computes the same"
        check(after.owners, heard=run.acknowledged, where=f"point {point}, shard {victim}")
        after.close()
        point += stride
        num_points += 1
    assert num_points > 200 // stride, "the wire did not see the protocol"


@pytest.mark.timeout(900)
@pytest.mark.parametrize("mode", ["sync", "async"])
@pytest.mark.parametrize("stride", [79, pytest.param(1, marks=pytest.mark.slow)])
def test_when_shard_0_dies_the_run_ends_and_the_next_one_goes_on(tmp_path: Path, mode: str, stride: int) -> None:
    point, ended, num_points = 1, False, 0
    while not ended:
        folder = tmp_path / f"point-{point}"
        folder.mkdir()
        wire = Wire(point=point, victim=0, away=10**6)
        run = ShardedRun(folder, config=sharded_config(mode=mode, steps=STEPS), wire=wire)
        try:
            run.go()
        except StoreUnreachableError:
            run.wire.shards[0].come_back()
        else:
            ended = True
        before = versions(run.first)
        run.close()
        after = finish(folder, mode=mode)
        made = versions(after.owners[0])
        assert before.items() <= made.items(), f"point {point}"
        assert made.keys() == set(range(STEPS + 1)), f"point {point}"
        check(after.owners, heard=[*run.acknowledged, *after.acknowledged], where=f"point {point}")
        after.close()
        point += stride
        num_points += 1
    assert num_points > 200 // stride, "the wire did not see the protocol"
