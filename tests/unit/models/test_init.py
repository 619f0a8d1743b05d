"""A new model folder: reproducible bytes, and a tokenizer that loses nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoConfig, AutoTokenizer

from configs.schema import ModelInit
from contracts.errors import UserError
from models.causal_lm import load_model
from models.init import END_TOKEN, byte_tokenizer, init_model
from models.tokenizer import load_tokenizer

SMALL = ModelInit(layers=1, width=16, heads=2, feed_forward=24, max_positions=64)
PRINTABLE = st.text(st.characters(min_codepoint=32, max_codepoint=126) | st.just("\n"))
ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]))  # all but half surrogate pairs, which are no text
TOKENIZER: Any = byte_tokenizer(max_length=64)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "small"
    init_model(path, settings=SMALL, seed=3)
    return path


def test_same_seed_gives_the_same_bytes_and_another_seed_other_weights(folder: Path, tmp_path: Path) -> None:
    init_model(tmp_path / "again", settings=SMALL, seed=3)
    init_model(tmp_path / "other", settings=SMALL, seed=4)
    for path in folder.iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes(), path.name
    assert (folder / "model.safetensors").read_bytes() != (tmp_path / "other" / "model.safetensors").read_bytes()


def test_the_random_state_of_the_caller_is_left_alone(tmp_path: Path) -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    init_model(tmp_path / "model", settings=SMALL, seed=1)
    assert torch.equal(torch.rand(3), expected)


def test_the_quickstart_size_has_the_stated_shape(tmp_path: Path) -> None:
    init_model(tmp_path / "model", settings=ModelInit(), seed=0)
    model = load_model(tmp_path / "model", attention="eager", dtype=torch.float32)
    assert sum(parameter.numel() for parameter in model.parameters()) == 1_872_576
    assert model.get_output_embeddings().weight is not model.get_input_embeddings().weight


def test_tied_embeddings_are_stored_once(tmp_path: Path) -> None:
    init_model(tmp_path / "tied", settings=SMALL.model_copy(update={"tied_embeddings": True}), seed=0)
    model = load_model(tmp_path / "tied", attention="eager", dtype=torch.float32)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_a_folder_in_use_is_refused(folder: Path) -> None:
    with pytest.raises(UserError, match="not empty"):
        init_model(folder, settings=SMALL, seed=0)


@given(PRINTABLE)
def test_every_printable_text_is_one_token_a_character_and_comes_back(text: str) -> None:
    ids = TOKENIZER.encode(text, split_special_tokens=True)
    assert ids == [ord(character) for character in text]
    assert TOKENIZER.decode(ids) == text


@given(ANY_TEXT)
def test_every_text_comes_back(text: str) -> None:
    ids = TOKENIZER.encode(text, split_special_tokens=True)
    assert ids == list(text.encode())
    assert TOKENIZER.decode(ids) == text


def test_every_token_has_its_own_id_below_the_vocabulary_size(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    assert sorted(tokenizer.get_vocab().values()) == list(range(AutoConfig.from_pretrained(folder).vocab_size))
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.padding_side) == (256, 257, "right")


@pytest.mark.parametrize(
    "text", ["two  spaces, a\ttab\nand a line", " it's 12+3=15 ", "é and é", f"{END_TOKEN} is text here"]
)
def test_loaded_tokenizers_agree(folder: Path, text: str) -> None:
    """AutoTokenizer takes another class for this model type; it composes é (NFC), else its ids are the same."""
    ours, auto = load_tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    assert len(ours) == len(auto) == json.loads((folder / "config.json").read_text())["vocab_size"]
    assert ours.decode(ours.encode(text, split_special_tokens=True)) == text
    assert auto.encode(text, split_special_tokens=True) == ours.encode(text, split_special_tokens=True)
