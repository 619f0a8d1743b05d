"""The transformers engine's key-value cache: written in place, rows dropped as they end, read by two products a layer.

A Hugging Face `DynamicCache` copies all keys and values at every token, and its decoding attention is a kernel made for
many queries at once. On one core, at 256 rows of up to 256 tokens, those two were 84 % of the time.

Keys and values stand in blocks that are contiguous as a whole, room for later tokens included: torch's bfloat16
products copy any other operand. What is not written yet is hidden by the mask, as padding is.

Shapes: R rows, H key-value heads of which each serves G query heads, D head width, C room for tokens, L written tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import Cache, DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

ATTENTION = "ratchet_decoding"  # the name under which models find `attend`
BLOCK_TOKENS = 32  # room grows by this


class BlockLayer(DynamicLayer):
    """Keys [R, H, D, C], so that a query meets them as columns, and values [R, H, C, D]."""

    keys: Any  # tensors, once a prompt was read
    values: Any
    _length = 0

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append keys and values [R, H, new, D]. The first time, they are the answer; later, all with all room:
        keys [R, H, C, D] (a transposed view) and values [R, H, C, D]."""
        start, self._length = self._length, self._length + key_states.shape[2]
        if not self.is_initialized:
            self.dtype, self.device, self.is_initialized = key_states.dtype, key_states.device, True
            self.keys, self.values = key_states.transpose(2, 3), value_states
            return key_states, value_states
        self.keys[:, :, :, start : self._length] = key_states.transpose(2, 3)
        self.values[:, :, start : self._length] = value_states
        return self.keys.transpose(2, 3), self.values

    def make_room(self, num_tokens: int) -> int:
        """See that `num_tokens` more can be appended; the room there is, C."""
        written: int = self.values.shape[2]
        room = -(-(self._length + num_tokens) // BLOCK_TOKENS) * BLOCK_TOKENS
        if room > written:
            R, H, _, D = self.values.shape
            keys, values = self.values.new_zeros(R, H, D, room), self.values.new_zeros(R, H, room, D)
            keys[:, :, :, :written], values[:, :, :written] = self.keys, self.values
            self.keys, self.values = keys, values
        return max(room, written)

    def get_seq_length(self) -> int:
        return self._length

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Row i becomes what row indices[i] was. Only rows that move are copied where no row is added."""
        num_rows = len(indices)
        if num_rows > len(self.values):
            self.keys, self.values = self.keys[indices], self.values[indices]
            return
        to = (indices != torch.arange(num_rows, device=indices.device)).nonzero()[:, 0]
        self.keys[to], self.values[to] = self.keys[indices[to]], self.values[indices[to]]
        self.keys, self.values = self.keys[:num_rows], self.values[:num_rows]


class BlockCache(Cache):
    """A cache of BlockLayers: read the prompt, then `make_room(1)` before each token."""

    def __init__(self, num_layers: int) -> None:
        self._blocks = [BlockLayer() for _ in range(num_layers)]  # type: ignore[no-untyped-call]
        super().__init__(layers=list(self._blocks))

    def make_room(self, num_tokens: int) -> int:
        return max(layer.make_room(num_tokens) for layer in self._blocks)


def make_cache(model: Any) -> BlockCache | None:
    """An empty cache for `model`, or None where it attends otherwise than to everything before (sliding windows)."""
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if config._attn_implementation != ATTENTION or kinds != {"full_attention"}:
        return None
    return BlockCache(config.num_hidden_layers)


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention output [R, queries, H · G, D]. One query a row over a BlockCache: two batched products. Else: sdpa.

    attention_mask: over a BlockCache float32 [R or 1, 1, 1, C], 0 where a row may look and -inf elsewhere.
    """
    R, num_heads, num_queries, D = query.shape
    H, C = key.shape[1], key.shape[2]
    if num_queries > 1 or attention_mask is None or attention_mask.dtype == torch.bool:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    scores_BGC = torch.bmm(query.reshape(R * H, -1, D), key.transpose(2, 3).flatten(0, 1))
    scaled_RHC = torch.add(attention_mask[:, 0], scores_BGC.view(R, num_heads, C), alpha=scaling or D**-0.5)
    weights_BGC = scaled_RHC.softmax(dim=-1).to(value.dtype).view(R * H, -1, C)
    return torch.bmm(weights_BGC, value.flatten(0, 1)).view(R, 1, num_heads, D), None


AttentionInterface.register(ATTENTION, attend)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
