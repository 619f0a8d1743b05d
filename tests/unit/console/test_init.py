"""`ratchet init`: what it writes passes its own test, loads, and is what the tutorial shows."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from configs.loader import load
from console import preflight
from console.init import EXAMPLE, FILES, init
from contracts.errors import UserError
from tests.unit.house.guard import ROOT


def test_the_example_passes_its_own_test_and_can_run(tmp_path: Path) -> None:
    folder = tmp_path / "first" / "my-task"
    init(folder)
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "."]
    answer = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False, timeout=50)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    config = load(folder / "run.yaml")
    assert config.name == "my-task"
    preflight.check(config.model_copy(update={"root": str(tmp_path / "runs")}), folder=folder)


def test_the_example_is_small() -> None:
    lines = (EXAMPLE / "task.py").read_text().splitlines()
    assert len([line for line in lines if line.strip()]) <= 30


@pytest.mark.parametrize("name", ["with space", "-x", "..", "é"])
def test_a_name_that_no_run_can_have_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError):
        init(tmp_path / name)


def test_nothing_is_written_over(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "task.py").write_text("mine")
    for name in ("taken", "full"):
        with pytest.raises(UserError, match="something of that name"):
            init(tmp_path / name)
    assert (tmp_path / "full" / "task.py").read_text() == "mine"


def test_the_tutorial_shows_these_files() -> None:
    text = (ROOT / "docs" / "tutorial" / "own_task.md").read_text()
    for file in FILES:
        assert (EXAMPLE / file).read_text().strip() in text, f"docs/tutorial/own_task.md shows another {file}"
