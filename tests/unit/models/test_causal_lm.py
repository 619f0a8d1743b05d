"""Loading a Hugging Face folder, and prompts to token ids."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from configs.schema import ModelInit
from contracts.errors import PromptTooLongError, UserError
from models.causal_lm import decode, encode_completion, encode_prompt, load_model, load_tokenizer, named_weights
from models.init import init_model

SMALL = ModelInit(layers=1, width=16, heads=2, feed_forward=24, max_positions=64)
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"
)


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


def test_a_long_prompt_keeps_its_end_or_is_refused(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    ids = encode_prompt(tokenizer, "0123456789", chat_template=True, max_tokens=4, truncation="left")
    assert (ids.dtype.name, decode(tokenizer, ids)) == ("int32", "6789")
    with pytest.raises(PromptTooLongError, match="10 tokens; at most 4"):
        encode_prompt(tokenizer, "0123456789", chat_template=True, max_tokens=4, truncation="refuse")
    exact = encode_prompt(tokenizer, "0123", chat_template=True, max_tokens=4, truncation="refuse")
    assert decode(tokenizer, exact) == "0123"


def test_the_chat_template_is_used_where_there_is_one_and_asked_for(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    tokenizer = load_tokenizer(folder)
    with_template = encode_prompt(tokenizer, "hi you", chat_template=True, max_tokens=64, truncation="refuse")
    plain = encode_prompt(tokenizer, "hi you", chat_template=False, max_tokens=64, truncation="refuse")
    assert decode(tokenizer, with_template) == "<user>hi you<a>"
    assert decode(tokenizer, plain) == "hi you"


def test_an_empty_prompt_is_refused(folder: Path) -> None:
    with pytest.raises(UserError, match="at least one token"):
        encode_prompt(load_tokenizer(folder), "", chat_template=False, max_tokens=4, truncation="left")


def test_a_completion_ends_with_the_end_token(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    ids = encode_completion(tokenizer, "olleh ")
    assert ids.tolist() == [*b"olleh ", tokenizer.eos_token_id]
    assert decode(tokenizer, ids) == "olleh "
