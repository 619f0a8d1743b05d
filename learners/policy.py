"""The network that learns: a Hugging Face causal language model that gives log-probabilities of packed completions.

Shapes as in learners/packing.py: R rows of L tokens, K predicted tokens; V words, H hidden width.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from configs.schema import Lora
from contracts.errors import FormatError, UserError
from contracts.protocols import WeightSet
from contracts.records import Scalar
from learners.numerics import fingerprint, settle
from learners.packing import MicroBatch, Sample, pack
from models.causal_lm import load_model, named_weights
from models.lora import adapter_weights, attach
from models.registry import arrays_of, root_hash

MAX_LOGITS = 1 << 27  # at once, K · V of them: more are computed in parts, and again in the backward pass
PROBE_TOLERANCE = 1e-3  # nats


class PolicyModel:
    """Float32 weights; "bf16" computes under autocast. Owns the process's torch settings: threads, determinism.

    With adapters (`lora.rank` above 0) "the weights" are the adapters everywhere below: the base never changes, and
    `base_hash` says which one it is.
    """

    def __init__(
        self,
        folder: Path,
        *,
        attention: Literal["eager", "sdpa"] = "eager",
        precision: Literal["fp32", "bf16"] = "fp32",
        device: Literal["cpu", "cuda"] = "cpu",
        threads: int = 1,
        max_logits: int = MAX_LOGITS,
        lora: Lora = Lora(),  # noqa: B008 (frozen)
        seed: int = 0,
    ) -> None:
        """`seed`: of fresh adapters. Raises UserError where the folder is no model, the device is missing, or the
        architecture or the adapters do not fit."""
        settle(threads=threads, device=device, folder=folder)
        self._attention, self._precision, self._device, self._max_logits = attention, precision, device, max_logits
        self._model: Any = load_model(folder, attention=attention, dtype=torch.float32)
        self.base_hash = root_hash(*arrays_of(named_weights(self._model)))
        self._lora = lora
        if lora.rank:
            attach(self._model, lora, seed=seed)
        torch.nn.Module.to(self._model, device)
        self._root_hash: str | None = None
        self._probe(folder)

    # ------------------------------------------------------------------------------------------ computing

    def log_probs(self, batch: MicroBatch, *, temperature: float = 1.0) -> Tensor:
        """float32 [K]: log-probability of each predicted token at `temperature` (0 is taken as 1: greedy decoding
        reports the unscaled distribution)."""
        with self._autocast():
            hidden_RLH = self._body(
                input_ids=self._to_device(batch.tokens_RL),
                position_ids=self._to_device(batch.positions_RL),
                attention_mask=self._mask(batch),
                use_cache=False,
            ).last_hidden_state
            # Logits are computed where a token is predicted, not at every place of the rows.
            hidden_KH = hidden_RLH.flatten(0, 1)[self._to_device(batch.sources_K)]
            targets_K = self._to_device(batch.targets_K)
            part = max(1, self._max_logits // self.vocab_size)
            if len(targets_K) <= part:
                return self._score(hidden_KH, targets_K, temperature or 1.0)
            parts = zip(torch.split(hidden_KH, part), torch.split(targets_K, part), strict=True)
            scored = [checkpoint(self._score, *pair, temperature or 1.0, use_reentrant=False) for pair in parts]
            return torch.cat(scored)

    def _score(self, hidden_KH: Tensor, targets_K: Tensor, temperature: float) -> Tensor:
        logits_KV = self._head(hidden_KH).float()
        if temperature != 1.0:
            logits_KV = logits_KV / temperature
        return -F.cross_entropy(logits_KV, targets_K, reduction="none")

    @contextlib.contextmanager
    def learning(self, *, seed: int) -> Iterator[None]:
        """Inside the block the adapters' dropout acts, drawn by `seed` alone; without dropout nothing changes."""
        dropouts = [one for name, one in self._model.named_modules() if name.endswith(".lora_dropout")]
        if self._lora.dropout:
            torch.manual_seed(seed)
        for one in dropouts:
            one.train()
        try:
            yield
        finally:
            for one in dropouts:
                one.eval()

    @property
    def has_dropout(self) -> bool:
        return bool(self._lora.dropout)

    def score(self, samples: Sequence[Sample], *, max_tokens: int, temperature: float) -> list[np.ndarray[Any, Any]]:
        """Without gradient: float32 log-probs of each sample's predicted tokens, in the samples' order."""
        scores: list[np.ndarray[Any, Any]] = [np.zeros(0, np.float32)] * len(samples)
        with torch.no_grad():
            for batch in pack(samples, max_tokens=max_tokens):
                log_probs_K = self.log_probs(batch, temperature=temperature).cpu().numpy()
                for place in batch.samples:
                    scores[place] = log_probs_K[batch.owners_K == place]
        return scores

    def _mask(self, batch: MicroBatch) -> Tensor:
        """[R, 1, L, L]: 0 where a token may look, else the lowest number, in the data type of the attention scores."""
        dtype = torch.bfloat16 if self._precision == "bf16" else torch.float32
        visible_RLL = self._to_device(batch.visible_RLL)
        mask_RLL = torch.zeros(visible_RLL.shape, dtype=dtype, device=self._device)
        return mask_RLL.masked_fill_(~visible_RLL, torch.finfo(dtype).min)[:, None]

    def _autocast(self) -> contextlib.AbstractContextManager[object]:
        if self._precision == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(self._device, torch.bfloat16)

    def _to_device(self, array: np.ndarray[Any, Any]) -> Tensor:
        return torch.from_numpy(array).to(self._device)

    @property
    def _body(self) -> Any:
        return self._model.base_model

    @property
    def _head(self) -> Any:
        return self._model.get_output_embeddings()

    def _probe(self, folder: Path) -> None:
        """Packed log-probs must be those of the plain forward pass: some architectures do more than body and head."""
        ids = np.arange(1, 9, dtype=np.int32) % self.vocab_size
        samples = [
            Sample(prompt_ids=ids[:3], completion_ids=ids[3:]),
            Sample(prompt_ids=ids[:3], completion_ids=ids[4:]),
        ]
        packed = self.score(samples, max_tokens=64, temperature=1.0)
        gap = 0.0
        for sample, got in zip(samples, packed, strict=True):
            sequence = torch.from_numpy(np.concatenate([sample.prompt_ids, sample.completion_ids])).long()
            with torch.no_grad(), self._autocast():
                logits = self._model(input_ids=sequence[None].to(self._device)).logits[0].float().log_softmax(-1).cpu()
            plain = logits[2:-1].gather(1, sequence[3:, None])[:, 0].numpy()
            gap = max(gap, float(np.abs(plain - got).max()))
        if not gap <= PROBE_TOLERANCE * (100 if self._precision == "bf16" else 1):
            raise UserError(
                f"to train the model in {folder}",
                f"{type(self._model).__name__} answers otherwise when completions are packed (by {gap:.3g} nats)",
                "use an architecture with plain causal attention and a linear output head, such as Qwen2 or Llama",
            )

    # ------------------------------------------------------------------------------------------ weights

    def copy(self) -> PolicyModel:
        """The same network with weights of its own, for reading only. A frozen base is shared."""
        twin = copy.copy(self)
        shared = {id(one): one for one in self._model.parameters() if not one.requires_grad}
        twin._model = copy.deepcopy(self._model, shared).requires_grad_(False)
        return twin

    @property
    def device(self) -> str:
        return self._device

    @property
    def vocab_size(self) -> int:
        return int(self._head.weight.shape[0])

    def parameters(self) -> dict[str, Tensor]:
        """The weights that learn, by name, sharing memory."""
        return {name: tensor for name, tensor in self._weights().items() if tensor.requires_grad}

    def _weights(self) -> dict[str, Tensor]:
        """What a version is: the adapters where there are some, else every stored tensor."""
        return adapter_weights(self._model) if self._lora.rank else named_weights(self._model)

    def changed(self) -> None:
        """The weights were written to: forget their hash."""
        self._root_hash = None

    def root_hash(self) -> str:
        if self._root_hash is None:
            self._root_hash = root_hash(*arrays_of(self._weights()))
        return self._root_hash

    def weights(self, version: int) -> WeightSet:
        """A copy in host memory."""
        copies = {name: tensor.detach().to("cpu", copy=True) for name, tensor in self._weights().items()}
        tensors, dtypes = arrays_of(copies)
        return WeightSet(version=version, root_hash=self.root_hash(), tensors=tensors, dtypes=dtypes)

    def tensors(self) -> dict[str, Tensor]:
        """The weights by name, detached, sharing memory."""
        return {name: tensor.detach() for name, tensor in self._weights().items()}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy all weights in. Raises FormatError, before anything is written, where names or shapes differ."""
        own = self.tensors()
        theirs = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        if theirs != {name: tuple(tensor.shape) for name, tensor in own.items()}:
            raise FormatError("the weights are of another network: their names or shapes differ")
        for name, tensor in own.items():
            tensor.copy_(tensors[name])
        self.changed()

    def fingerprint(self) -> dict[str, Scalar]:
        """What the bits of a step depend on, besides its inputs."""
        return {
            **fingerprint(device=self._device),
            "transformers": transformers.__version__,
            "precision": self._precision,
            "attention": self._attention,
            **({"peft": version("peft")} if self._lora.rank else {}),
        }
