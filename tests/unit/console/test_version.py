"""`ratchet version`: the tree, one version, two versions; bad input is one message."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from buffers import branching, snapshots
from tests.unit.console.played import STEPS, copy
from tests.unit.console.test_bad_input import assert_refused, ratchet


def answer(*words: str, cwd: Path) -> str:
    said = ratchet("version", *words, cwd=cwd)
    assert said.returncode == 0, said.stderr
    return said.stdout


def test_the_list(finished_run: Path) -> None:
    lines = answer("list", str(finished_run), cwd=finished_run.parent).splitlines()
    assert [line.split()[1] for line in lines] == [str(number) for number in range(STEPS, -1, -1)]
    assert all(line.startswith("* ") for line in lines)
    assert "mass" in lines[0]
    assert "served" in lines[1]
    assert lines[0].endswith("[checkpoint]")
    assert not lines[1].endswith("]")

    said = json.loads(answer("list", str(finished_run), "--limit", "3", "--json", cwd=finished_run.parent))
    assert [one["version"] for one in said["versions"]] == [STEPS, STEPS - 1, STEPS - 2]
    newest, before, _ = said["versions"]
    assert newest["acted"] == {}  # the last one is served and acts in nothing
    assert before["acted"] == {"rollout-0.0": 4}
    assert (newest["metric"], newest["parent"]) == ("mass", STEPS - 1)
    assert "and 4 older ones" in answer("list", str(finished_run), "--limit", "3", cwd=finished_run.parent)


def test_one_version(finished_run: Path) -> None:
    said = json.loads(answer("show", str(finished_run), "2", "--json", cwd=finished_run.parent))
    assert (said["version"], said["depth"], said["children"]) == (2, 2, [3])
    assert said["batch"]["episodes"] == 4
    assert said["batch"]["groups"] == 2
    assert said["kept"] in (["checkpoint"], [])
    text = answer("show", str(finished_run), cwd=finished_run.parent)
    assert text.startswith(f"version {STEPS}, step {STEPS}")
    assert "learned from 4 episodes in 2 groups" in text
    assert "it is the genesis" in answer("show", str(finished_run), "0", cwd=finished_run.parent)


def test_two_versions(finished_run: Path) -> None:
    said = json.loads(answer("diff", str(finished_run), "1", "4", "--json", cwd=finished_run.parent))
    assert said["ancestor"] == 1
    assert said["behind"]["steps"] == 0
    assert (said["ahead"]["steps"], said["ahead"]["episodes"]) == (3, 12)
    assert said["fingerprint"] == {}
    text = answer("diff", str(finished_run), "1", "4", cwd=finished_run.parent)
    assert "only 4 has learned from steps 2 to 4: 3 batches of 12 episodes" in text


def test_a_branch_is_named_where_it_left(finished_run: Path, tmp_path: Path) -> None:
    run = copy(finished_run, tmp_path)
    branching.restore(snapshots.create(run, "evening"), tmp_path / "twig", share=True)
    assert f"twig branched off at version {STEPS}" in answer("list", str(run), cwd=tmp_path)
    said = json.loads(answer("show", str(run), str(STEPS), "--json", cwd=tmp_path))
    assert said["branches"] == ["twig"]
    assert json.loads(answer("list", str(tmp_path / "twig"), "--json", cwd=tmp_path))["branches"] == []


@pytest.mark.parametrize("words", [("show", "{run}", "99"), ("diff", "{run}", "1", "99"), ("pin", "{run}", "99")])
def test_no_such_version(finished_run: Path, words: tuple[str, ...]) -> None:
    named = [word.format(run=finished_run) for word in words]
    assert_refused(ratchet("version", *named, cwd=finished_run.parent), "version 99", f"the log has 0 to {STEPS}")


def test_letting_go_of_what_is_not_pinned(finished_run: Path) -> None:
    said = ratchet("version", "pin", str(finished_run), "1", "--remove", cwd=finished_run.parent)
    assert_refused(said, "to let go of version 1", "pinned: none")
