"""Small language models for engine tests, and a plain forward pass over them as the learner.

Their weights are larger than an untrained model's, so that the next token is far from evenly likely: on a flat
distribution wrong weights hardly show.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from configs.schema import Engine as EngineSettings
from configs.schema import ModelInit
from contracts.protocols import Completion, Engine, InFlight, Request, Sampling, WeightSet
from contracts.records import FloatArray, IntArray
from inference.parity import gap, probe_requests
from models.causal_lm import named_weights
from models.init import init_model

VOCAB_SIZE = 258
SHAPE = ModelInit(layers=2, width=64, heads=2, feed_forward=128, max_positions=256)


def make_policy(folder: Path, *, tied: bool = False, seed: int = 0, shape: ModelInit = SHAPE) -> Reference:
    """A model folder, and the same model as a learner would hold it."""
    init_model(folder, settings=shape.model_copy(update={"tied_embeddings": tied}), seed=seed)
    reference = Reference(folder)
    with torch.no_grad():
        for name, tensor in reference.tensors().items():
            if tensor.ndim == 2:
                tensor.mul_(12 if "embed" in name or "head" in name else 4)
    reference.model.save_pretrained(folder)
    return reference


class Reference:
    """The learner's side: a float32 Hugging Face model and its one forward pass."""

    def __init__(self, folder: Path) -> None:
        self.model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)

    def copy(self) -> Reference:
        """As it is now, whatever is trained later."""
        return deepcopy(self)

    def tensors(self) -> dict[str, torch.Tensor]:
        return named_weights(self.model)

    def weights(self, version: int, *, dtype: str = "float32") -> WeightSet:
        """A copy, as a learner hands it out."""
        if dtype == "bfloat16":
            arrays = {
                name: one.detach().to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
                for name, one in self.tensors().items()
            }
        else:
            arrays = {name: one.detach().numpy().copy() for name, one in self.tensors().items()}
        return WeightSet(version=version, root_hash="", tensors=arrays, dtypes=dict.fromkeys(arrays, dtype))

    def train(self, *, seed: int, size: float) -> None:
        """Move each weight by `size` times its tensor's own spread, at random, in place."""
        random = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for one in self.tensors().values():
                spread = one.std() if one.numel() > 1 and one.std() > 0 else torch.tensor(0.02)
                one.add_(torch.randn(one.shape, generator=random) * spread * size)

    @torch.no_grad()
    def score(self, prompt_ids: IntArray, token_ids: IntArray, *, temperature: float = 1.0) -> FloatArray:
        """Log-probs float32 [C] of the completion's tokens."""
        ids = torch.from_numpy(np.concatenate([prompt_ids, token_ids]).astype(np.int64))
        logits_TV = self.model(input_ids=ids[None]).logits[0, len(prompt_ids) - 1 : -1] / temperature
        log_probs_TV = torch.log_softmax(logits_TV, dim=-1)
        scored: FloatArray = log_probs_TV.gather(1, ids[len(prompt_ids) :, None])[:, 0].numpy()
        return scored

    @torch.no_grad()
    def next_log_probs(self, prompt_ids: IntArray) -> FloatArray:
        """float32 [V]: the whole distribution of the first token."""
        logits_V = self.model(input_ids=torch.from_numpy(prompt_ids.astype(np.int64))[None]).logits[0, -1]
        every: FloatArray = torch.log_softmax(logits_V, dim=-1).numpy()
        return every

    @torch.no_grad()
    def greedy(self, prompt_ids: IntArray, num: int) -> list[int]:
        ids: list[int] = prompt_ids.tolist()
        for _ in range(num):
            ids.append(int(self.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        return ids[len(prompt_ids) :]


def settings(**changes: Any) -> EngineSettings:
    return EngineSettings(
        **{"max_prompt_tokens": 56, "max_tokens": 200, "max_sequences": 64, "memory_gib": 0.25, "dtype": "float32"}
        | changes
    )


def requests(num: int, *, seed: int = 0, lengths: Sequence[int] = (3, 9, 5, 40), **sampling: Any) -> list[Request]:
    """`num` random prompts of the lengths given, in turn."""
    draws = np.random.default_rng(seed)
    return [
        Request(
            request_id=f"{seed}-{i}",
            prompt_ids=draws.integers(0, VOCAB_SIZE, lengths[i % len(lengths)], dtype=np.int32),
            sampling=Sampling(**{"max_tokens": 8, "seed": 1000 * seed + i} | sampling),
        )
        for i in range(num)
    ]


def log_prob_gap(reference: Reference, asked: Sequence[Request], answered: Sequence[Completion]) -> float:
    """Mean |engine - learner| over all generated tokens, at the temperature of each request (0: unscaled)."""
    mine = [
        reference.score(one.prompt_ids, answer.token_ids, temperature=one.sampling.temperature or 1.0)
        for one, answer in zip(asked, answered, strict=True)
    ]
    return gap([one.log_probs for one in answered], mine)


def push(engine: Engine, weights: WeightSet, *, in_flight: InFlight = InFlight.FINISH) -> None:
    engine.pause(in_flight, timeout_s=30)
    try:
        engine.push(weights)
    finally:
        engine.resume()


def guard_gap(engine: Engine, reference: Reference, weights: WeightSet, *, seed: int = 0) -> float:
    """What the guard measures: probes before the push, so that their prompts are cached, and again after it."""
    probes = probe_requests(VOCAB_SIZE, seed=seed)
    engine.pause(InFlight.FINISH, timeout_s=30)
    try:
        engine.generate(probes, timeout_s=60, guard=True)
        engine.push(weights)
        return log_prob_gap(reference, probes, engine.generate(probes, timeout_s=60, guard=True))
    finally:
        engine.resume()


def altered(weights: WeightSet, changes: Mapping[str, Any]) -> WeightSet:
    """`weights` with some tensors replaced; None takes one away."""
    tensors = {name: one for name, one in {**weights.tensors, **changes}.items() if one is not None}
    dtypes = {name: weights.dtypes.get(name, str(one.dtype)) for name, one in tensors.items()}
    return WeightSet(version=weights.version, root_hash="", tensors=tensors, dtypes=dtypes)
