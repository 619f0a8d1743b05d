"""A run that several tests read, so that it is made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.end_to_end.commands import LEARNS, run_to_end


@pytest.fixture(scope="session")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of LEARNS. Nobody changes it."""
    return Path(run_to_end(LEARNS, root=tmp_path_factory.mktemp("recorded"))["folder"])
