"""The keys and values of all sequences, in blocks, and the hidden states that X-LoRA classifiers read."""

from __future__ import annotations

import torch
from torch import Tensor


class KVCache:
    """Keys and values by layer, block and slot. Which block belongs to whom is the block pool's business.

    Beside them lie the hidden states after the final norm: with them an X-LoRA request that shares blocks of the
    scaling pass, with another mixture or, unless prompts are separated, with a base request, gets its scalings without
    that pass.
    """

    def __init__(
        self,
        num_layers: int,
        num_blocks: int,
        block_size: int,
        num_kv_heads: int,
        head_dim: int,
        hidden_size: int,
        *,
        dtype: torch.dtype,
        device: torch.device,
        hidden_dtype: torch.dtype | None = None,
    ) -> None:
        """`hidden_dtype` is that of the hidden states; None: `dtype`, that of keys and values."""
        # Zeros, not garbage: a slot that is masked out still takes part in a product, and 0 * NaN is NaN.
        shape = (num_layers, num_blocks, block_size, num_kv_heads, head_dim)
        self.block_size = block_size
        self._keys = torch.zeros(shape, dtype=dtype, device=device)
        self._values = torch.zeros(shape, dtype=dtype, device=device)
        self._hidden = torch.zeros((num_blocks * block_size, hidden_size), dtype=hidden_dtype or dtype, device=device)

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors."""
        return sum(t.numel() * t.element_size() for t in (self._keys, self._values, self._hidden))

    @property
    def storage(self) -> tuple[Tensor, Tensor]:
        """Keys and values of all layers in place, for an executor that orders the inside of a block its own way."""
        return self._keys, self._values

    def write(self, layer: int, slots: Tensor, keys: Tensor, values: Tensor) -> None:
        """Store keys and values [num_tokens, num_kv_heads, head_dim] at slots int64 [num_tokens]."""
        self._keys[layer].flatten(0, 1).index_copy_(0, slots, keys)
        self._values[layer].flatten(0, 1).index_copy_(0, slots, values)

    def write_hidden(self, slots: Tensor, hidden: Tensor) -> None:
        """Store hidden states [num_tokens, hidden_size] at slots int64 [num_tokens]."""
        self._hidden.index_copy_(0, slots, hidden)

    def read_hidden(self, slots: Tensor) -> Tensor:
        """Hidden states [num_tokens, hidden_size] at slots int64 [num_tokens]."""
        return self._hidden.index_select(0, slots)

    def read(self, layer: int, blocks: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [len(blocks) * block_size, num_kv_heads, head_dim] of blocks int64 [num_blocks]."""
        return self._keys[layer].index_select(0, blocks).flatten(0, 1), self._values[layer].index_select(
            0, blocks
        ).flatten(0, 1)
