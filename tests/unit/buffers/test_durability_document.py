"""docs/durability.md: each row names a test that exists, each command a module that runs."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
TEXT = (ROOT / "docs" / "durability.md").read_text()


def list_rows(title: str) -> list[list[str]]:
    """The cells of the table below a heading."""
    section = TEXT.split(f"## {title}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[1:]]


def test_each_row_names_a_test_that_exists() -> None:
    rows = list_rows("By what dies")
    assert len(rows) > 20
    for what, _, _, shown_by in rows:
        tests = re.findall(r"`(tests/\S+\.py)::(\w+)`", shown_by)
        assert tests, what
        for file, name in tests:
            assert re.search(rf"^def {name}\(", (ROOT / file).read_text(), flags=re.MULTILINE), f"{file}::{name}"


def test_each_command_is_there() -> None:
    commands = [row[0] for row in list_rows("By method")]
    modules = re.findall(r"python -m (\S+?)[ `]", " ".join(commands))
    assert len(modules) == len(commands) >= 5
    for module in modules:
        assert importlib.util.find_spec(module) is not None, module
