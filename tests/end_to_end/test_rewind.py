"""A run rewound from the command line: what docs/time_machine.md shows, and the branch goes on like any run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.end_to_end.commands import ROOT, TINY, ratchet, run_to_end
from tests.end_to_end.test_documents import commands
from tests.end_to_end.test_replay_changed import contents

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]


def test_a_run_is_rewound_scored_and_resumed(tmp_path: Path) -> None:
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    root = tmp_path / "runs"
    run = Path(run_to_end({**TINY, "steps": 6, "learner.learning_rate": 1e-3}, root=root)["folder"])
    before = contents(run)
    lines = [words[1:] for words in commands("docs/time_machine.md") if words[1] in ("replay", "rewind")]
    assert [words[0] for words in lines] == ["replay", "replay", "rewind", "rewind", "replay"]
    for words in lines:
        answer = ratchet(*words, cwd=tmp_path)
        assert answer.returncode == 0, f"{words}\n{answer.stdout}{answer.stderr}"
    assert contents(run) == before
    report = json.loads((root / "without" / "rewind.json").read_text())
    assert report["metric"] in report["recorded"]["scores"].keys() & report["rewound"]["scores"].keys()
    assert report["first_step"] in (2, 3)  # no batch is older than by one version
    assert 0 < report["later"]["share"] <= 1
    assert all(0 < report["ess"][how] <= 1 + 1e-9 for how in ("by_token", "by_episode"))
    again = ratchet("rewind", str(run), "--exclude", "version=1:2", "--as", "without", "--json", cwd=tmp_path)
    assert json.loads(again.stdout) == report

    resumed = ratchet("resume", str(root / "without"), "--set", "steps=8", "--json", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    status = json.loads(resumed.stdout.splitlines()[-1])
    assert status["step"] == 8
    replayed = ratchet("replay", str(root / "without"), "--json", cwd=tmp_path)
    assert replayed.returncode == 0, replayed.stderr
    assert json.loads(replayed.stdout)["unequal"] == []
    assert contents(run) == before

    snapshot = ratchet("snapshot", "create", str(run), "--name", "evening", cwd=tmp_path)
    assert snapshot.returncode == 0, snapshot.stderr
    elsewhere = tmp_path / "elsewhere" / "copy"
    shutil.copytree(run / "snapshots" / "evening", elsewhere)
    replayed = ratchet("replay", str(elsewhere), "--json", cwd=elsewhere.parent)
    assert replayed.returncode == 0, replayed.stderr
    assert json.loads(replayed.stdout)["equal"] == 6
    other = ratchet(
        "rewind",
        str(run / "snapshots" / "evening"),
        "--exclude",
        "version=1:2",
        "--no-evaluate",
        "--json",
        cwd=tmp_path,
    )
    assert other.returncode == 0, other.stderr
    assert json.loads(other.stdout)["later"] == report["later"]
