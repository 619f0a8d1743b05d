"""Text to token ids and back, by the tokenizer of a local Hugging Face folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from contracts.errors import PromptTooLongError, UserError
from contracts.records import IntArray
from models.folder import check_folder

Tokenizer = Any  # a PreTrainedTokenizerBase; transformers' own annotations do not hold under strict checking


def load_tokenizer(folder: Path) -> Tokenizer:
    """The folder's tokenizer. Raises UserError.

    A folder that names the generic class gets its tokenizer.json read as it is. For some model types AutoTokenizer
    overrules that word, and then normalises the text (transformers 5.19, `MODELS_WITH_INCORRECT_HUB_TOKENIZER_CLASS`).
    """
    check_folder(folder)
    try:
        if _tokenizer_class(folder) in ("TokenizersBackend", "PreTrainedTokenizerFast"):
            return PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"the tokenizer in {folder}", f"transformers cannot read it: {error}", "check the folder's files"
        ) from error


def _tokenizer_class(folder: Path) -> str:
    path = folder / "tokenizer_config.json"
    return str(json.loads(path.read_text()).get("tokenizer_class", "")) if path.is_file() else ""


def encode_prompt(
    tokenizer: Tokenizer, text: str, *, chat_template: bool, max_tokens: int, truncation: Literal["left", "refuse"]
) -> IntArray:
    """Token ids int32 [P], 1 <= P <= max_tokens, of what the policy is asked.

    With `chat_template`, and where the tokenizer has one, the text is one user turn, followed by the template's opening
    of the answer; else it is encoded as it stands, special tokens in it taken as plain text.
    Too long: "left" keeps the last `max_tokens` tokens; "refuse" raises PromptTooLongError. Empty: UserError.
    """
    if chat_template and tokenizer.chat_template:
        messages = [{"role": "user", "content": text}]
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    else:
        ids = tokenizer.encode(text, split_special_tokens=True)
    if not ids:
        raise UserError("a prompt of at least one token", f"{text!r} encodes to none", "check environment.prompt")
    if len(ids) > max_tokens and truncation == "refuse":
        raise PromptTooLongError(f"a prompt of {len(ids)} tokens; at most {max_tokens} are allowed")
    return np.asarray(ids[-max_tokens:], dtype=np.int32)


def encode_remark(tokenizer: Tokenizer, text: str, *, chat_template: bool) -> IntArray:
    """Token ids int32 [R] of what comes between an answer, whose end token is there already, and the next answer.

    With `chat_template`, and where the tokenizer has one: what the template puts behind the end token, then the text as
    another user turn, and the opening of the answer; else the text as it stands. Raises UserError where a template
    shows earlier turns in another way once there are later ones: what was generated could not stay as it is.
    """
    if not (chat_template and tokenizer.chat_template):
        return np.asarray(tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True), dtype=np.int32)
    talk = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]
    before = str(tokenizer.apply_chat_template(talk, tokenize=False))
    talk.append({"role": "user", "content": text})
    after = str(tokenizer.apply_chat_template(talk, tokenize=False, add_generation_prompt=True))
    end = before.rfind(tokenizer.eos_token)
    if end < 0 or not after.startswith(before):
        raise UserError(
            "a task of several turns with this model's chat template",
            "the template rewrites earlier turns, or does not end an answer with the end token",
            "set model.chat_template to false, or environment.max_turns to 1",
        )
    ids = tokenizer.encode(after[end + len(tokenizer.eos_token) :], add_special_tokens=False)
    return np.asarray(ids, dtype=np.int32)


def encode_completion(tokenizer: Tokenizer, text: str) -> IntArray:
    """Token ids int32 [C] of an answer to imitate, the end token included."""
    ids = tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
    return np.asarray([*ids, tokenizer.eos_token_id], dtype=np.int32)


def decode(tokenizer: Tokenizer, ids: IntArray) -> str:
    """The text of a completion, special tokens left out."""
    return str(tokenizer.decode(ids.tolist(), skip_special_tokens=True, clean_up_tokenization_spaces=False))
