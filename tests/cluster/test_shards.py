"""Three shards on three real Ray nodes: one is killed, its node with it, and comes back."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.shards import NUM_SHARDS, measure

pytestmark = [pytest.mark.cluster, pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]


def test_a_lost_shard_pauses_its_groups_only_and_catches_up(tmp_path: Path) -> None:
    found = measure(tmp_path / "run", seconds=5.0, producers=3)
    assert found["lost"] == found["doubled"] == 0
    assert found["balanced"]
    assert min(found["by_shard"]) > 0
    assert len(found["by_shard"]) == NUM_SHARDS
    assert min(found[window]["appends_per_s"][0] for window in ("before", "during", "after")) > 0
    assert min(found[window]["batches_per_s"][0] for window in ("before", "during", "after")) > 0
    assert found["rows_trained"] == found["rows"] > 0, "each shard has heard of every batch"
