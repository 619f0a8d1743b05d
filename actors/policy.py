"""What a rollout acts and is judged with: the policy's tokenizer, and the environment in its child process."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from configs.schema import RunConfig
from contracts.records import IntArray
from environments.host import EnvironmentHost
from models.tokenizer import decode, encode_completion, encode_prompt, load_tokenizer


def start_environment(config: RunConfig) -> EnvironmentHost:
    """The environment's child process; it makes its items while others load."""
    return EnvironmentHost(config.environment, seed=config.seed)


def warm_start_pairs(config: RunConfig, codec: TokenizerCodec) -> list[tuple[IntArray, IntArray]]:
    """(prompt ids, completion ids) of all training items that supervised fine-tuning may show."""
    indices = range(config.environment.train_items)
    with start_environment(config) as environment:
        prompts, targets = environment.prompts("train", indices), environment.targets("train", indices)
    return [
        (codec.encode_prompt(prompt.text), codec.encode_completion(target))
        for prompt, target in zip(prompts, targets, strict=True)
    ]


class TokenizerCodec:
    """loops.text.TextCodec by a Hugging Face tokenizer."""

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
