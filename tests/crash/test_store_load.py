"""A store under producers of every kind, some of which die, stall or are fenced: `python -m benchmarks.store_load`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.store_load import main


@pytest.mark.slow
@pytest.mark.ray
def test_nothing_is_lost_under_load(tmp_path: Path) -> None:
    file = tmp_path / "found.json"
    assert main(["--quick", "--folder", str(tmp_path), "--json", str(file)]) == 0
    found = json.loads(file.read_text())
    assert found["faults"] == []
    assert found["episodes"] > 500
    assert found["versions"] > 0
    assert found["told"].keys() == {"append", "lease"}
    assert [row["name"] for row in found["goals"] if not row["met"]] == []
    assert min(found["heard"].values()) > 0
