"""`sync` mode with the transformers engine: the same seed gives the same bits, and a replay says so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from buffers.view import StoreView
from contracts.records import Kind, Version
from tests.end_to_end.commands import LEARNS, SYNC, ratchet, run_to_end

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]


def hashes(folder: Path) -> dict[int, str]:
    records = StoreView.open(folder / "store").decisions(kinds=[Kind.VERSION])
    return {record.step: record.root_hash for _, record in records if isinstance(record, Version)}


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bits(tmp_path: Path) -> None:
    """With two workers, each of which has its fixed share; another number of them cuts other engine batches."""
    settings = {**LEARNS, "rollout.workers": 2}
    first = Path(run_to_end(settings, root=tmp_path)["folder"])
    second = Path(run_to_end(settings, root=tmp_path)["folder"])
    assert hashes(first) == hashes(second)
    assert len(set(hashes(first).values())) > 2, "nothing was learned: the comparison says nothing"


def test_taking_turns_on_one_device_gives_the_same_bits(tmp_path: Path, recorded: Path) -> None:
    """Colocated, engine and update worker share a bundle and sleep in turn: only who waits for whom is another."""
    together = Path(run_to_end({**LEARNS, "cluster.mode": "colocated"}, root=tmp_path)["folder"])
    assert hashes(recorded) == hashes(together)
    assert len(set(hashes(together).values())) > 2, "nothing was learned: the comparison says nothing"

    replayed = ratchet("replay", str(together), "--json")
    assert replayed.returncode == 0, replayed.stderr
    assert json.loads(replayed.stdout)["equal"] == 4


@pytest.mark.slow
def test_a_colocated_run_goes_on(tmp_path: Path) -> None:
    together = Path(run_to_end({**SYNC, "cluster.mode": "colocated"}, root=tmp_path)["folder"])
    ended = ratchet("resume", str(together), "--set", "steps=6", "--json")
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout.splitlines()[-1])["step"] == 6
