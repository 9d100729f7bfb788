"""The operations that a model definition is written in.

A definition says once what an architecture computes, as calls on a `Forward`. `EagerForward` computes them at once in
torch; the native program records them once, and runs them in compiled code from then on. A definition so never touches
a tensor's values, takes no branch on them, and knows nothing of caches, batches or adapters: what an operation needs of
these, it has from the `Forward`.
"""

from __future__ import annotations

from typing import Protocol, TypeVar

from torch import Tensor

from inference_svc.layers.batch import AttentionShape
from inference_svc.layers.linear import GatedExpert, Linear
from inference_svc.layers.rotary import RotaryTable
from inference_svc.weights.quantization import QuantizedTensor

# What the values of a pass are: tensors of rows [num_tokens, width], or what stands for them in a recording.
Value = TypeVar("Value")

ACTIVATIONS = ("silu", "gelu", "gelu_tanh")


class Forward(Protocol[Value]):
    """One pass over the rows of a batch; every value is [num_tokens, width]."""

    def embed(self, table: QuantizedTensor, scale: float = 1.0) -> Value:
        """Rows of the embedding table [vocab_size, width] for the tokens of the batch, times a scale."""
        ...

    def linear(self, x: Value, layer: Linear) -> Value:
        """W x + bias, and what adapters add to it: the one seam by which they enter."""
        ...

    def rms_norm(self, x: Value, weight: Tensor, eps: float) -> Value:
        """Root-mean-square norm (arXiv 1910.07467) times float32 [width]."""
        ...

    def layer_norm(self, x: Value, weight: Tensor, bias: Tensor | None, eps: float) -> Value:
        """Layer norm (arXiv 1607.06450) times float32 [width], plus a bias [width]."""
        ...

    def split(self, x: Value, sizes: tuple[int, ...]) -> tuple[Value, ...]:
        """Columns of a value, in pieces of these widths."""
        ...

    def rotary(self, x: Value, table: RotaryTable, head_dim: int) -> Value:
        """Rotate the first 2 * (width of the table) dimensions of every head, first half against second half."""
        ...

    def attention(self, q: Value, k: Value, v: Value, layer: int, shape: AttentionShape) -> Value:
        """Write keys and values to the layer's cache, then attend: [num_tokens, num_heads * head_dim]."""
        ...

    def activate(self, kind: str, x: Value) -> Value:
        """One of ACTIVATIONS, element by element."""
        ...

    def gated(self, kind: str, gate: Value, up: Value) -> Value:
        """One of ACTIVATIONS of the gate, times up."""
        ...

    def experts(self, x: Value, scores: Value, experts: tuple[GatedExpert, ...], per_token: int, kind: str) -> Value:
        """Every row through the `per_token` experts of its highest scores [num_tokens, len(experts)], and their sum.

        Each counts with the softmax of its score among those that are kept (arXiv 2401.04088).
        """
        ...

    def add(self, x: Value, y: Value) -> Value:
        """x + y."""
        ...

    def softcap(self, x: Value, limit: float) -> Value:
        """limit * tanh(x / limit)."""
        ...
