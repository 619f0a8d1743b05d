"""Load a causal language model and its tokenizer from a local Hugging Face folder, and turn text into token ids."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast
from transformers.utils.logging import disable_progress_bar

from contracts.errors import PromptTooLongError, UserError
from contracts.records import IntArray

Tokenizer = Any  # a PreTrainedTokenizerBase; transformers' own annotations do not hold under strict checking
WEIGHT_PATTERNS = ("*.safetensors", "pytorch_model*.bin")


def check_folder(folder: Path) -> None:
    """Raise UserError unless `folder` looks like a Hugging Face model: config.json, tokenizer, weights."""
    asked = f"the model in {folder}"
    todo = "name a local Hugging Face folder, or make one with `ratchet model init`"
    if not folder.is_dir():
        raise UserError(asked, "there is no such folder", todo)
    if not (folder / "config.json").is_file():
        raise UserError(asked, f"it has no config.json, only {_listing(folder)}", todo)
    if not any(next(folder.glob(pattern), None) for pattern in WEIGHT_PATTERNS):
        raise UserError(asked, f"it has no weights ({' or '.join(WEIGHT_PATTERNS)}), only {_listing(folder)}", todo)
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        raise UserError(asked, f"it has no tokenizer (tokenizer.json), only {_listing(folder)}", todo)


def _listing(folder: Path, *, most: int = 8) -> str:
    names = sorted(path.name for path in folder.iterdir())
    return ", ".join(names[:most]) + (", …" if len(names) > most else "") or "nothing"


def load_model(folder: Path, *, attention: Literal["eager", "sdpa"], dtype: torch.dtype) -> PreTrainedModel:
    """The network on the CPU, in evaluation mode (no dropout), its weights cast to `dtype`. Raises UserError."""
    check_folder(folder)
    disable_progress_bar()
    try:
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            folder, attn_implementation=attention, dtype=dtype, local_files_only=True
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise UserError(
            f"the model in {folder}", f"transformers cannot read it: {error}", "check the folder's files"
        ) from error
    model.eval()
    return model


def named_weights(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Every stored tensor once, by its Hugging Face name, sharing memory. Of tied weights the first name counts."""
    weights: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            weights[name] = tensor
    return weights


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


def encode_completion(tokenizer: Tokenizer, text: str) -> IntArray:
    """Token ids int32 [C] of an answer to imitate, the end token included."""
    ids = tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
    return np.asarray([*ids, tokenizer.eos_token_id], dtype=np.int32)


def decode(tokenizer: Tokenizer, ids: IntArray) -> str:
    """The text of a completion, special tokens left out."""
    return str(tokenizer.decode(ids.tolist(), skip_special_tokens=True, clean_up_tokenization_spaces=False))
