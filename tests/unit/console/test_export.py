"""`ratchet model export` of what is no language model."""

from __future__ import annotations

from pathlib import Path

import pytest

from configs.loader import load
from console.model import export
from console.run_folder import create
from contracts.errors import UserError


def test_a_control_run_is_refused_with_the_place_of_its_policy(tmp_path: Path) -> None:
    folder = create(load("configs/control_cartpole.yaml", [f"root={tmp_path}"]))
    with pytest.raises(UserError) as caught:
        export(str(folder), version=0, out=tmp_path / "out")
    assert "CartPole-v1" in caught.value.found
    assert "versions" in caught.value.todo
    assert not (tmp_path / "out").exists()
