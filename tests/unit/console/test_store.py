"""`ratchet store` on a run's folder: what it says of what lies there."""

from __future__ import annotations

import json
from pathlib import Path

from typer.testing import CliRunner

from buffers.owner import StoreOwner
from console.main import app
from tests.crash.plain import plain_config
from tests.unit.buffers.bench import Bench, name_task
from tests.unit.console import played


def ratchet(*words: str) -> str:
    """What a command prints that must not fail."""
    answer = CliRunner().invoke(app, words)
    assert answer.exit_code == 0, answer.output
    return answer.stdout


def spoil(folder: Path) -> None:
    """One good episode and one with a reward that is no number, in the store of a finished run."""
    config = plain_config(steps=100, mode="async")
    owner = StoreOwner.open(folder / "store", config=config, source=name_task)
    bench = Bench(owner)
    bench.serve(played.STEPS + 1, step=played.STEPS + 1)
    (lease, *_) = bench.lease()
    version = played.STEPS + 1
    bench.owner.append(
        [bench.make(lease, 0, version=version), bench.make(lease, 1, version=version, reward=float("nan"))]
    )
    owner.close()


def test_inspect_counts_what_there_is(finished_run: Path) -> None:
    text = ratchet("store", "inspect", str(finished_run))
    assert "24 episode, 12 task" in text
    assert "quarantined: none" in text
    contents = json.loads(ratchet("store", "inspect", str(finished_run), "--json"))
    assert contents["data"]["records"] == {"episode": 24, "task": 12}
    assert contents["control"]["records"]["version"] == played.STEPS + 1
    assert contents["ledger"]["balanced"]
    assert contents["data"]["end_lsn"] <= contents["data"]["num_bytes"]


def test_quarantined_episodes_are_shown_with_their_reason(finished_run: Path, tmp_path: Path) -> None:
    folder = played.copy(finished_run, tmp_path)
    spoil(folder)
    text = ratchet("store", "inspect", str(folder))
    assert "quarantined: 1 episodes (1 reward)" in text
    assert "member 1, of rollout-0: its reward is nan" in text
    (shown,) = json.loads(ratchet("store", "inspect", str(folder), "--json"))["quarantined"]
    assert (shown["fault"], shown["detail"], "payload" in shown) == ("reward", "its reward is nan", False)
    assert json.loads(ratchet("store", "inspect", str(folder), "--json", "--newest", "0"))["quarantined"] == []
    assert "quarantined: 1 episodes (1 reward)" in ratchet("status", str(folder))
    assert json.loads(ratchet("status", str(folder), "--json"))["ledger"]["quarantined"] == {"reward": 1}


def test_export_writes_tables_and_says_how_many_rows(finished_run: Path, tmp_path: Path) -> None:
    text = ratchet("export", str(finished_run), "--out", str(tmp_path / "out"))
    assert "episodes: 24 rows" in text
    made = json.loads(ratchet("export", str(finished_run), "--out", str(tmp_path / "more"), "--json"))
    assert made["rows"]["batches"] == made["rows"]["episodes"] == 24
    answer = CliRunner().invoke(app, ["export", str(finished_run), "--out", str(tmp_path / "out")])
    assert (answer.exit_code, "something already" in answer.output) == (2, True)
