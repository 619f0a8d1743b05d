"""Prompts to token ids: nothing lost, truncation as stated."""

from __future__ import annotations

from pathlib import Path

import pytest

from configs.schema import ModelInit
from contracts.errors import PromptTooLongError, UserError
from models.init import init_model
from models.tokenizer import decode, encode_completion, encode_prompt, load_tokenizer

SMALL = ModelInit(layers=1, width=16, heads=2, feed_forward=24, max_positions=64)
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    init_model(tmp_path / "model", settings=SMALL, seed=0)
    return tmp_path / "model"


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
