"""`ratchet store` on a run's folder: what it says of what lies there."""

from __future__ import annotations

import json
from pathlib import Path

from typer.testing import CliRunner

from buffers.owner import StoreOwner
from buffers.view import StoreView
from console.main import app
from contracts.records import Batch
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


# ---------------------------------------------------------------------------------------------- looking after it


def flip(path: Path, offset: int) -> None:
    """One byte of a file, in a copy that takes its name."""
    data = bytearray(path.read_bytes())
    data[offset] ^= 0xFF
    draft = path.with_suffix(".draft")
    draft.write_bytes(data)
    draft.replace(path)


def test_verify_says_whole_or_what_is_not(finished_run: Path, tmp_path: Path) -> None:
    folder = played.copy(finished_run, tmp_path)
    assert "whole" in ratchet("store", "verify", str(folder))
    assert json.loads(ratchet("store", "verify", str(folder), "--json"))["defects"] == []
    segment = max((folder / "store" / "data").glob("*.seg"), key=lambda path: path.stat().st_size)
    flip(segment, 2000)
    answer = CliRunner().invoke(app, ["store", "verify", str(folder)])
    assert (answer.exit_code, "data LSN" in answer.stdout, "DEFECTS" in answer.stdout) == (1, True, True)
    answer = CliRunner().invoke(app, ["store", "verify", str(folder), "--json"])
    assert answer.exit_code == 1
    assert json.loads(answer.stdout)["defects"][0]["place"] == "data"
    assert "lost: data LSN" in ratchet("store", "repair", str(folder))
    assert "mended: data LSN" in ratchet("store", "repair", str(folder), "--from", str(finished_run))
    assert "nothing is damaged" in ratchet("store", "repair", str(folder))
    assert json.loads(ratchet("store", "repair", str(folder), "--json")) == {"mended": [], "lost": [], "kept": []}


def test_erase_names_the_versions_that_cannot_be_made_again(finished_run: Path, tmp_path: Path) -> None:
    folder = played.copy(finished_run, tmp_path)
    rows = json.loads(ratchet("export", str(folder), "--out", str(tmp_path / "out"), "--json"))["rows"]
    assert rows["steps"] == 24
    view = StoreView.open(folder / "store")
    first = next(record for _, record in view.decisions() if isinstance(record, Batch))
    task = view.fold.groups[first.rows[0].lease].task.task_id
    assert "not rebuildable from now on: versions 1" in ratchet("store", "erase", str(folder), "--task", task)
    done = json.loads(ratchet("store", "erase", str(folder), "--task", task, "--json"))
    assert (done["lsns"], 1 in done["versions"]) == ([], True)
    answer = CliRunner().invoke(app, ["store", "erase", str(folder), "--episode", "nobody"])
    assert (answer.exit_code, "no episode or task of the store fits" in answer.output) == (2, True)


def test_snapshots_are_verified_branched_restored_and_deleted(finished_run: Path, tmp_path: Path) -> None:
    folder = played.copy(finished_run, tmp_path)
    ratchet("snapshot", "create", str(folder), "--name", "end")
    assert "is whole" in ratchet("snapshot", "verify", str(folder), "end")
    made = json.loads(ratchet("snapshot", "branch", str(folder), "end", "--as", "twig", "--json"))
    assert made["folder"] == str(tmp_path / "twig")
    assert "go on with: ratchet resume" in ratchet("snapshot", "restore", str(folder), "end", "--as", "copy")
    assert "is gone" in ratchet("snapshot", "delete", str(folder), "end")
    for name in ("twig", "copy"):
        assert "whole" in ratchet("store", "verify", str(tmp_path / name))
        status = json.loads(ratchet("status", str(tmp_path / name), "--json"))
        assert (status["step"], status["state"]) == (played.STEPS, "created")
    for words in (["verify", "end"], ["branch", "end", "--as", "x"], ["delete", "end"]):
        answer = CliRunner().invoke(app, ["snapshot", words[0], str(folder), *words[1:]])
        assert (answer.exit_code, "there is none of that name" in answer.output) == (2, True)


def test_an_archive_is_made_and_restored_by_command(finished_run: Path, tmp_path: Path) -> None:
    folder = played.copy(finished_run, tmp_path)
    answer = CliRunner().invoke(app, ["store", "archive", str(folder)])
    assert (answer.exit_code, "no place is named" in answer.output) == (2, True)
    uri = f"file://{tmp_path / 'far'}"
    assert "objects" in ratchet("store", "archive", str(folder), "--to", uri)
    assert json.loads(ratchet("store", "archive", str(folder), "--to", uri, "--json"))["num_sent"] == 0
    assert "go on with" in ratchet("store", "restore", uri, "--as", str(tmp_path / "back"))
    assert "whole" in ratchet("store", "verify", str(tmp_path / "back"))
    answer = CliRunner().invoke(app, ["store", "restore", uri, "--as", str(tmp_path / "more"), "--store", "x"])
    assert (answer.exit_code, "that is no UUID" in answer.output) == (2, True)
