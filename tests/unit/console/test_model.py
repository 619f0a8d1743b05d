"""`ratchet model init`: the same seed makes the same bytes, and nothing is overwritten."""

from __future__ import annotations

from pathlib import Path

from typer.testing import CliRunner

from console.main import app

SMALL = ["--layers", "1", "--width", "16", "--heads", "2", "--feed-forward", "32"]


def test_the_same_seed_makes_the_same_bytes(tmp_path: Path) -> None:
    weights = []
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        answer = CliRunner().invoke(app, ["model", "init", str(tmp_path / name), "--seed", seed, *SMALL])
        assert answer.exit_code == 0, answer.output
        weights.append((tmp_path / name / "model.safetensors").read_bytes())
    assert weights[0] == weights[1] != weights[2]


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("")
    answer = CliRunner().invoke(app, ["model", "init", str(tmp_path), *SMALL])
    assert answer.exit_code == 2
    assert "is not empty" in answer.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
