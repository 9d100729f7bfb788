"""The linear layer: the one seam by which adapters enter a model."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from inference_svc.kernels.operations import Kernels
from inference_svc.layers.batch import AdapterRows
from inference_svc.weights.quantization import QuantizedTensor


@dataclass(frozen=True, slots=True, eq=False)
class Linear:
    """A linear layer of the base model."""

    path: str  # as in the checkpoint: `model.layers.0.self_attn.q_proj`
    weight: QuantizedTensor  # [out_features, in_features]
    bias: Tensor | None = None  # float32 [out_features]


@dataclass(frozen=True, slots=True, eq=False)
class GatedExpert:
    """The feed-forward block of one expert of a mixture."""

    gate: Linear
    up: Linear
    down: Linear


def adapted_linear(kernels: Kernels, x: Tensor, layer: Linear, adapters: tuple[AdapterRows, ...]) -> Tensor:
    """y = W x + bias, plus the deltas of the rows that adapters change, each delta times its weight s.

    A LoRA's delta is B A x. A DoRA's is its whole layer less the base's, (g - 1) * W x + g * B A x: with s = 1 the
    DoRA itself, with s = 0 nothing, and a sum over the plain base whatever the order it is written in.

    A row without adapters is the base's to the bit. [num_tokens, in_features] -> [num_tokens, out_features].
    """
    base = kernels.linear(x, layer.weight)
    y = base if layer.bias is None else base + layer.bias.to(base.dtype)
    return kernels.add_deltas(y, base, x, layer.path, adapters) if adapters else y
