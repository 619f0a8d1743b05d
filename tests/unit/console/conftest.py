"""What the console's tests share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.console import played


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, to be read only."""
    return played.play(tmp_path_factory.mktemp("runs"))
