"""Prompts to token ids: nothing lost, truncation as stated."""

from __future__ import annotations

from pathlib import Path

import pytest

from configs.schema import ModelInit
from contracts.errors import PromptTooLongError, UserError
from models.init import init_model
from models.tokenizer import decode, encode_completion, encode_prompt, encode_remark, load_tokenizer

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


def test_a_remark_is_another_user_turn_after_the_end_token(folder: Path) -> None:
    """Prompt, answer and remark as ids make up what the template makes of the whole talk."""
    ended = TEMPLATE.replace("{% endfor %}", "{% if m.role == 'assistant' %}<|end|>\n{% endif %}{% endfor %}")
    (folder / "chat_template.jinja").write_text(ended)
    tokenizer = load_tokenizer(folder)
    prompt = encode_prompt(tokenizer, "hi", chat_template=True, max_tokens=64, truncation="refuse")
    answer, remark = encode_completion(tokenizer, "yo"), encode_remark(tokenizer, "again", chat_template=True)
    talk = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]
    talk.append({"role": "user", "content": "again"})
    whole = tokenizer.apply_chat_template(talk, add_generation_prompt=True, return_dict=False)
    # The template's own opening of an answer stands where a whole talk has the assistant's mark.
    assert decode(tokenizer, remark) == "\n<user>again<a>"
    assert [*prompt, *answer, *remark][-len(remark) - 3 :] == whole[-len(remark) - 3 :]


def test_a_remark_without_a_template_stands_as_it_is(folder: Path) -> None:
    assert encode_remark(load_tokenizer(folder), "a b<|end|>", chat_template=True).tolist() == [*b"a b<|end|>"]


@pytest.mark.parametrize("template", [TEMPLATE, "{{ messages | length }}<|end|>"])
def test_a_template_that_cannot_be_continued_is_refused(folder: Path, template: str) -> None:
    (folder / "chat_template.jinja").write_text(template)
    with pytest.raises(UserError, match="several turns"):
        encode_remark(load_tokenizer(folder), "again", chat_template=True)


def test_an_empty_prompt_is_refused(folder: Path) -> None:
    with pytest.raises(UserError, match="at least one token"):
        encode_prompt(load_tokenizer(folder), "", chat_template=False, max_tokens=4, truncation="left")


def test_a_completion_ends_with_the_end_token(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    ids = encode_completion(tokenizer, "olleh ")
    assert ids.tolist() == [*b"olleh ", tokenizer.eos_token_id]
    assert decode(tokenizer, ids) == "olleh "
