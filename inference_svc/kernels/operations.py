"""The operations that a forward pass is made of, as an interface: the reference defines them, others are faster."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from inference_svc.kv_cache.cache import KVCache
from inference_svc.layers.batch import AttentionSegment, AttentionShape
from inference_svc.weights.quantization import QuantizedTensor


class Kernels(Protocol):
    """One implementation of every operation; chosen once, at start."""

    @property
    def name(self) -> str:
        """`reference`, `native`: what the start-up line says."""
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

    def attention(
        self, queries: Tensor, cache: KVCache, layer: int, segments: tuple[AttentionSegment, ...], shape: AttentionShape
    ) -> Tensor:
        """Causal grouped-query attention of [num_tokens, num_heads, head_dim] over the cached keys and values."""
        ...
