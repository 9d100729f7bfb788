"""The linear layer: the one seam by which adapters enter a model."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from inference_svc.kernels.operations import Kernels
from inference_svc.layers.batch import AdapterRows
from inference_svc.weights.quantization import QuantizedTensor


@dataclass(frozen=True, slots=True, eq=False)
class Linear:
    """y = W x, plus B((A x) * s) for the rows that an adapter changes."""

    path: str  # as in the checkpoint: `model.layers.0.self_attn.q_proj`
    weight: QuantizedTensor  # [out_features, in_features]
    kernels: Kernels

    def __call__(self, x: Tensor, adapters: tuple[AdapterRows, ...]) -> Tensor:
        """[num_tokens, in_features] -> [num_tokens, out_features]. A row without adapters is the base's to the bit."""
        y = self.kernels.linear(x, self.weight)
        for adapter in adapters:
            delta = adapter.bank.deltas.get(self.path)
            if delta is None:
                continue
            row = adapter.bank.scaling_rows[self.path] if adapter.scalings.shape[1] > 1 else 0
            low_rank = self.kernels.dense(x.index_select(0, adapter.rows), delta.a)
            scaled = low_rank * adapter.scalings[:, row, :].index_select(1, delta.expert_of_rank)
            y.index_add_(0, adapter.rows, self.kernels.dense(scaled, delta.b))
        return y
