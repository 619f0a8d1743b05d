"""`ratchet store query`: what it lists, what it sums up, and what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from console.main import app
from console.query import parse_time, parse_versions
from contracts.errors import UserError
from tests.unit.console import played
from tests.unit.console.test_store import ratchet


def ask(run: Path, *options: str) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(ratchet("store", "query", str(run), "--json", *options))
    return answer


def test_episodes_are_listed_and_summed_up(finished_run: Path) -> None:
    text = ratchet("store", "query", str(finished_run), "--limit", "3")
    head, *rows, summary = text.splitlines()
    assert head.split() == ["lsn", "episode_id", "task_id", "versions", "reward", "producer", "time"]
    assert len(rows) == 3
    assert f"24 episodes of 12 tasks by 1 producers, versions 0 to {played.STEPS - 1}; 24 with a reward" in summary
    assert ratchet("store", "query", str(finished_run), "--task", "nothing of the kind") == "no episode fits\n"
    assert len(ratchet("store", "query", str(finished_run), "--limit", "0").splitlines()) == 1


def test_the_newest_are_listed_in_log_order(finished_run: Path) -> None:
    every = ask(finished_run, "--limit", "1000")["episodes"]
    assert len(every) == 24
    assert ask(finished_run, "--limit", "5")["episodes"] == every[-5:]


def test_conditions_are_joined(finished_run: Path) -> None:
    good, bad = (ask(finished_run, option)["summary"] for option in ("--success", "--failure"))
    assert good["episodes"] == good["successes"]
    assert bad["successes"] == 0
    assert good["episodes"] + bad["episodes"] == 24
    assert ask(finished_run, "--version", "1:2", "--producer", "rollout-0.0")["summary"]["versions"] == [1, 2]
    assert ask(finished_run, "--since", "1970-01-01", "--until", "2300-01-01T00:00")["summary"]["episodes"] == 24
    assert ask(finished_run, "--since", "2300-01-01")["summary"] == {
        "episodes": 0,
        "tasks": 0,
        "producers": [],
        "versions": [None, None],
        "rewarded": 0,
        "successes": 0,
        "reward_mean": None,
    }


def test_a_run_without_footers_and_a_snapshot_answer_the_same(finished_run: Path, tmp_path: Path) -> None:
    folder = played.copy(finished_run, tmp_path)
    ratchet("snapshot", "create", str(folder), "--name", "end")
    expected = ask(folder, "--success")
    shutil.rmtree(folder / "store" / "footers")
    assert ask(folder, "--success") == expected
    assert ask(folder / "snapshots" / "end", "--success")["episodes"] == expected["episodes"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--version", "new"), "that is no range of versions"),
        (("--version", "3:1"), "the first one is above the last"),
        (("--since", "yesterday"), "that is no time"),
        (("--until", "nan"), "that is no time"),
        (("--since", "5", "--until", "4"), "nothing lies between"),
    ],
)
def test_bad_input_is_told_in_three_sentences(finished_run: Path, options: tuple[str, ...], told: str) -> None:
    answer = CliRunner().invoke(app, ["store", "query", str(finished_run), *options])
    assert (answer.exit_code, answer.stdout) == (2, "")
    assert [line[:7] for line in answer.stderr.splitlines()] == ["error: ", "found: ", "to do: "]
    assert told in answer.stderr


def test_ranges_and_times_are_read() -> None:
    assert [parse_versions(text) for text in ("7", "3:9", ":9")] == [(7, 7), (3, 9), (0, 9)]
    assert parse_versions("3:")[0] == 3
    assert parse_time("--since", "12.5") == 12.5
    assert parse_time("--since", "2026-01-31T12:00") == parse_time("--since", "2026-01-31T13:00+01:00") == 1769860800.0
    with pytest.raises(UserError):
        parse_versions("3-9")
