"""Load a causal language model from a local Hugging Face folder."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from contracts.errors import UserError
from models.folder import check_folder


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
