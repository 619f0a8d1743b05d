"""Make a small language model from nothing: a Hugging Face folder with seeded weights and a byte tokenizer.

The vocabulary is the 256 bytes of UTF-8 and two special tokens, and a token's id is its byte: every text round-trips,
spaces included, and no tokenizer has to be trained.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from configs.schema import ModelInit
from contracts.errors import UserError
from models.causal_lm import named_weights

PAD_TOKEN, END_TOKEN = "<|pad|>", "<|end|>"
NUM_BYTES = 256


def init_model(folder: Path, *, settings: ModelInit, seed: int) -> None:
    """Write config, weights (float32 safetensors) and tokenizer to `folder`. The same seed gives the same bytes.

    Raises UserError where `folder` holds something already.
    """
    if folder.exists() and any(folder.iterdir()):
        raise UserError(
            f"a new model in {folder}", "that folder is not empty", "name another folder, or remove this one first"
        )
    tokenizer = byte_tokenizer(max_length=settings.max_positions)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=settings.width,
        intermediate_size=settings.feed_forward,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.heads,
        max_position_embeddings=settings.max_positions,
        tie_word_embeddings=settings.tied_embeddings,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen2ForCausalLM(config)
    folder.mkdir(parents=True, exist_ok=True)
    config.architectures = [type(model).__name__]
    config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    save_file(named_weights(model), folder / "model.safetensors", metadata={"format": "pt"})
    tokenizer.save_pretrained(folder)


def byte_tokenizer(*, max_length: int) -> PreTrainedTokenizerFast:
    """A token per UTF-8 byte, id = byte; 256 is the padding token, 257 ends a completion. Pads on the right."""
    vocabulary = {symbol: byte for byte, symbol in enumerate(_symbols())}
    tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(PAD_TOKEN, special=True), AddedToken(END_TOKEN, special=True)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD_TOKEN,
        eos_token=END_TOKEN,
        unk_token=PAD_TOKEN,  # no text is unknown; without a name here AutoTokenizer adds a token of its own
        padding_side="right",
        truncation_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=max_length,
    )


def _symbols() -> list[str]:
    """The printable stand-in of each byte that byte-level tokenizers use (GPT-2, Radford et al. 2019)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    shifted = (symbol for symbol in range(NUM_BYTES, 2 * NUM_BYTES))
    return [chr(byte) if byte in printable else chr(next(shifted)) for byte in range(NUM_BYTES)]
