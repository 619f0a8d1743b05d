"""A recorded run trained again: with the same settings the run itself, with others another result beside the run, which
stays as it was. Also in the README's commands (test_documents.py).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from buffers.view import StoreView
from contracts.records import Evaluation, Kind
from tests.end_to_end.branches import check_other_losses
from tests.end_to_end.commands import ratchet

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]


def contents(folder: Path) -> dict[str, tuple[int, str]]:
    """Modification time and hash of every file but the index's lock file, in which LMDB notes who reads."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "lock.mdb"]
    return {str(path): (path.stat().st_mtime_ns, hashlib.sha256(path.read_bytes()).hexdigest()) for path in files}


@pytest.fixture(autouse=True)
def unchanged(recorded: Path) -> Iterator[None]:
    before = contents(recorded)
    yield
    assert contents(recorded) == before


def test_the_same_settings_give_the_run_itself(recorded: Path) -> None:
    said = ratchet("replay", str(recorded), "--compare")
    assert said.returncode == 0, said.stderr
    assert "with the same settings" in said.stdout
    (file,) = recorded.parent.glob(f"{recorded.name}-replay-*/report.json")
    report = json.loads(file.read_text())
    (again,) = report["branches"]
    *_, evaluated = StoreView.open(recorded / "store").decisions(kinds=[Kind.EVALUATION])
    assert isinstance(evaluated[1], Evaluation)
    assert again["root_hash"] == report["recorded"]["root_hash"]
    assert again["scores"] == report["recorded"]["scores"] == evaluated[1].scores


@pytest.mark.slow
def test_other_losses_on_a_recorded_run(recorded: Path, tmp_path: Path) -> None:
    out = tmp_path / "rloo"
    answer = ratchet("replay", str(recorded), "--set", "learner.loss=rloo", "--seeds", "2", "--out", str(out), "--json")
    assert answer.returncode == 0, answer.stderr
    report = json.loads(answer.stdout)
    check_other_losses(out)
    assert json.loads((out / "report.json").read_text()) == report

    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "my_losses.py").write_text("def plain(log_probs, _, advantages, __):\n    return -advantages * log_probs\n")
    own = ratchet(
        "replay", str(recorded), "--set", "learner.loss=my_losses:plain", "--until", "2", "--out", "out", "--json",
        cwd=mine,
    )  # fmt: skip
    assert own.returncode == 0, own.stderr
    (branch,) = json.loads(own.stdout)["branches"]
    assert branch["steps"] == 2
    assert branch["fingerprint"]["loss"].startswith("my_losses:plain ")
