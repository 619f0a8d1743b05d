"""Loading the network of a Hugging Face folder."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from configs.schema import ModelInit
from contracts.errors import UserError
from models.causal_lm import load_model, named_weights
from models.init import init_model

SMALL = ModelInit(layers=1, width=16, heads=2, feed_forward=24, max_positions=64)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    init_model(tmp_path / "model", settings=SMALL, seed=0)
    return tmp_path / "model"


def test_a_missing_folder_is_named_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        load_model(tmp_path / "nowhere", attention="eager", dtype=torch.float32)
    assert "nowhere" in caught.value.asked
    assert caught.value.found == "there is no such folder"
    assert "ratchet model init" in caught.value.todo


@pytest.mark.parametrize(
    ("missing", "message"),
    [("config.json", "no config.json"), ("model.safetensors", "no weights"), ("tokenizer.json", "no tokenizer")],
)
def test_a_missing_file_is_named(folder: Path, missing: str, message: str) -> None:
    (folder / missing).unlink()
    with pytest.raises(UserError, match=message):
        load_model(folder, attention="eager", dtype=torch.float32)


def test_damaged_weights_are_a_user_error(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(UserError, match="cannot read it"):
        load_model(folder, attention="eager", dtype=torch.float32)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_and_data_type_are_as_asked(folder: Path, attention: str, dtype: torch.dtype) -> None:
    model = load_model(folder, attention="eager" if attention == "eager" else "sdpa", dtype=dtype)
    assert model.config._attn_implementation == attention
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    assert not model.training


def test_tied_weights_have_one_name(tmp_path: Path) -> None:
    for tied in (False, True):
        path = tmp_path / f"tied-{tied}"
        init_model(path, settings=SMALL.model_copy(update={"tied_embeddings": tied}), seed=0)
        names = named_weights(load_model(path, attention="eager", dtype=torch.float32)).keys()
        assert "model.embed_tokens.weight" in names
        assert ("lm_head.weight" in names) is not tied
