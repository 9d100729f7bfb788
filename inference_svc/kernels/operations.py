"""The operations that a forward pass is made of, as an interface: the reference defines them, others are faster."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from inference_svc.kv_cache.cache import KVCache
from inference_svc.layers.batch import AdapterRows, AttentionSegment, AttentionShape
from inference_svc.weights.quantization import QuantizedTensor


class Kernels(Protocol):
    """One implementation of every operation; chosen once, at start."""

    @property
    def name(self) -> str:
        """`reference`, `triton`: what the start-up line says."""
        ...

    @property
    def batch_invariant(self) -> bool:
        """True if no row's arithmetic depends on the other rows."""
        ...

    def linear(self, x: Tensor, weight: QuantizedTensor) -> Tensor:
        """[num_tokens, in_features] times the transpose of a packed [out_features, in_features] weight."""
        ...

    def dense(self, x: Tensor, matrix: Tensor) -> Tensor:
        """[num_tokens, in_features] times the transpose of a dense [out_features, in_features] matrix."""
        ...

    def add_deltas(self, y: Tensor, base: Tensor, x: Tensor, path: str, adapters: tuple[AdapterRows, ...]) -> Tensor:
        """y with what adapters add to a linear layer, each delta times its weight; y may be written to.

        Args:
            y: [num_tokens, out_features], the layer's output.
            base: the same without the layer's bias; may be y itself.
            x: [num_tokens, in_features], the layer's input.
            path: of the layer, as banks name it.
            adapters: of the pass; those that do not change the layer are passed over.
        """
        ...

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Root-mean-square norm over the last axis (arXiv 1910.07467)."""
        ...

    def rotary(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Rotate the first dimensions of [num_tokens, num_heads, head_dim], first half against second half.

        cos and sin are [num_tokens, n]; the first 2n dimensions of a head are rotated, what follows stays.
        """
        ...

    def layer_norm(self, x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
        """Layer norm over the last axis (arXiv 1607.06450)."""
        ...

    def activate(self, kind: str, x: Tensor) -> Tensor:
        """`silu`, `gelu` or `gelu_tanh`, element by element."""
        ...

    def gated(self, kind: str, gate: Tensor, up: Tensor) -> Tensor:
        """`silu`, `gelu` or `gelu_tanh` of the gate, times up."""
        ...

    def write(self, cache: KVCache, layer: int, slots: Tensor, keys: Tensor, values: Tensor) -> None:
        """Store keys and values [num_tokens, num_kv_heads, head_dim] at slots int64 [num_tokens] of the cache."""
        ...

    def attention(
        self, queries: Tensor, cache: KVCache, layer: int, segments: tuple[AttentionSegment, ...], shape: AttentionShape
    ) -> Tensor:
        """Causal grouped-query attention of [num_tokens, num_heads, head_dim] over the cached keys and values."""
        ...
