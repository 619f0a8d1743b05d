"""A learner's state on disk: whole and the expected one, or refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from contracts.errors import FormatError
from learners.checkpoint import load_state, save_state, state_hash

PARTS = {"weights": {"a": torch.arange(6.0).reshape(2, 3)}, "optimizer": {"step": torch.tensor(3.0)}}
NUMBERS = {"last_step": 3}


def test_a_state_comes_back(tmp_path: Path) -> None:
    whole = save_state(tmp_path / "step", PARTS, NUMBERS)
    parts, numbers = load_state(tmp_path / "step", whole)
    assert numbers == NUMBERS
    assert whole == state_hash(PARTS, NUMBERS) == state_hash(parts, numbers)
    assert torch.equal(parts["weights"]["a"], PARTS["weights"]["a"])


def test_an_optimizer_without_moments_comes_back(tmp_path: Path) -> None:
    whole = save_state(tmp_path / "step", {**PARTS, "optimizer": {}}, NUMBERS)
    assert load_state(tmp_path / "step", whole)[0]["optimizer"] == {}


def test_the_hash_sees_every_part_and_number() -> None:
    other = {**PARTS, "optimizer": {"step": torch.tensor(4.0)}}
    assert len({state_hash(PARTS, NUMBERS), state_hash(other, NUMBERS), state_hash(PARTS, {"last_step": 4})}) == 3


def test_saving_again_replaces_it(tmp_path: Path) -> None:
    first = save_state(tmp_path / "step", PARTS, NUMBERS)
    second = save_state(tmp_path / "step", PARTS, {"last_step": 4})
    assert load_state(tmp_path / "step", second)[1] == {"last_step": 4}
    with pytest.raises(FormatError, match="hashes to"):
        load_state(tmp_path / "step", first)


@pytest.mark.parametrize("missing", ["state.json", "weights.safetensors", "optimizer.safetensors"])
def test_a_missing_file_is_refused(tmp_path: Path, missing: str) -> None:
    whole = save_state(tmp_path / "step", PARTS, NUMBERS)
    (tmp_path / "step" / missing).unlink()
    with pytest.raises(FormatError, match="no whole checkpoint"):
        load_state(tmp_path / "step", whole)


@pytest.mark.parametrize("part", ["weights", "optimizer"])
def test_a_flipped_bit_is_refused(tmp_path: Path, part: str) -> None:
    whole = save_state(tmp_path / "step", PARTS, NUMBERS)
    path = tmp_path / "step" / f"{part}.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(FormatError, match="hashes to"):
        load_state(tmp_path / "step", whole)


def test_another_format_version_is_refused(tmp_path: Path) -> None:
    whole = save_state(tmp_path / "step", PARTS, NUMBERS)
    path = tmp_path / "step" / "state.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format_version": 2}))
    with pytest.raises(FormatError, match="format version 2"):
        load_state(tmp_path / "step", whole)
