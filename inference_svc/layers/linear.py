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
    y = kernels.linear(x, layer.weight)
    changes = [(adapter, delta) for adapter in adapters if (delta := adapter.bank.deltas.get(layer.path)) is not None]
    # A DoRA changes what the base's weight says: not its bias, and not what another adapter has added to it.
    base = y.clone() if any(delta.base_factor is not None for _, delta in changes) else y
    if layer.bias is not None:
        y = y + layer.bias.to(y.dtype)
    for adapter, delta in changes:
        row = adapter.bank.scaling_rows[layer.path] if adapter.scalings.shape[1] > 1 else 0
        low_rank = kernels.dense(x.index_select(0, adapter.rows), delta.a)
        scaled = low_rank * adapter.scalings[:, row, :].index_select(1, delta.expert_of_rank)
        change = kernels.dense(scaled, delta.b)
        if delta.base_factor is not None:
            factor = delta.base_factor * adapter.scalings[:, row, :]  # float32, whatever the activations are
            change += (base.index_select(0, adapter.rows) * factor).to(change.dtype)
        y.index_add_(0, adapter.rows, change)
    return y
