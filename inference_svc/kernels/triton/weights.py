"""The weights of a model's linear layers, packed anew when the model is loaded."""

from __future__ import annotations

import torch
from torch import Tensor

from inference_svc.kernels.triton.packing import PackedWeight, pack
from inference_svc.layers.batch import AttentionShape
from inference_svc.layers.linear import GatedExpert, Linear
from inference_svc.layers.rotary import RotaryTable
from inference_svc.models.definition import ModelDefinition
from inference_svc.weights.quantization import QuantizedTensor


class PackedWeights:
    """What products read instead of a weight: its codes, or a dense matrix where its type has none."""

    def __init__(self, dtype: torch.dtype) -> None:
        """`dtype` is that of activations, which dense matrices take."""
        self._dtype = dtype
        # By identity of the weight, which is kept with it: a tied embedding is packed once.
        self._packed: dict[int, tuple[QuantizedTensor, PackedWeight | Tensor]] = {}

    def of(self, weight: QuantizedTensor) -> PackedWeight | Tensor:
        """The weight as products read it, packed now if it is not yet."""
        if id(weight) not in self._packed:
            self._packed[id(weight)] = weight, pack(weight) or weight.dequantize(self._dtype)
        return self._packed[id(weight)][1]

    def load(self, model: ModelDefinition) -> None:
        """Pack all weights of a model, one after the other; what was packed gives its memory back.

        Raises:
            WeightsError: a file cannot be read any more.
        """
        found = LinearLayers(model)
        for layer in found.layers:
            self.of(layer.weight)
            is_table = any(layer.weight is table for table in found.tables)
            if not is_table:  # rows of an embedding are looked up as they are
                layer.weight.release()


class LinearLayers:
    """A pass that computes nothing, and finds the linear layers and embeddings of a model; see `Forward`."""

    def __init__(self, model: ModelDefinition) -> None:
        self.layers: list[Linear] = []
        self.tables: list[QuantizedTensor] = []
        model.hidden_states(self)
        model.logits(self, None)

    def embed(self, table: QuantizedTensor, scale: float = 1.0) -> None:
        self.tables.append(table)

    def linear(self, x: None, layer: Linear) -> None:
        self.layers.append(layer)

    def experts(self, x: None, scores: None, experts: tuple[GatedExpert, ...], per_token: int, kind: str) -> None:
        self.layers += [layer for expert in experts for layer in (expert.gate, expert.up, expert.down)]

    def rms_norm(self, x: None, weight: Tensor, eps: float) -> None: ...

    def layer_norm(self, x: None, weight: Tensor, bias: Tensor | None, eps: float) -> None: ...

    def split(self, x: None, sizes: tuple[int, ...]) -> tuple[None, ...]:
        return (None,) * len(sizes)

    def rotary(self, x: None, table: RotaryTable, head_dim: int) -> None: ...

    def attention(self, q: None, k: None, v: None, layer: int, shape: AttentionShape) -> None: ...

    def activate(self, kind: str, x: None) -> None: ...

    def gated(self, kind: str, gate: None, up: None) -> None: ...

    def add(self, x: None, y: None) -> None: ...

    def softcap(self, x: None, limit: float) -> None: ...
