"""What a rollout acts and is judged with: the policy's tokenizer, and the environment in its child process."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from configs.schema import RunConfig
from contracts.records import IntArray
from models.tokenizer import decode, encode_completion, encode_prompt, load_tokenizer


class TokenizerCodec:
    """loops.rollout.TextCodec by a Hugging Face tokenizer."""

    def __init__(self, model_folder: Path, config: RunConfig) -> None:
        self._tokenizer, self._config = load_tokenizer(model_folder), config

    @property
    def stop_token_ids(self) -> tuple[int, ...]:
        return (int(self._tokenizer.eos_token_id),)

    def encode_prompt(self, text: str) -> IntArray:
        model = self._config.model
        return encode_prompt(
            self._tokenizer,
            text,
            chat_template=model.chat_template,
            max_tokens=self._config.engine.max_prompt_tokens,
            truncation=model.truncation,
        )

    def encode_completion(self, text: str) -> IntArray:
        return encode_completion(self._tokenizer, text)

    def decode(self, token_ids: IntArray) -> str:
        return decode(self._tokenizer, np.asarray(token_ids))
