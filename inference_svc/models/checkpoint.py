"""A model's weights under the names of Hugging Face checkpoints, whatever file they come from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from inference_svc.layers.linear import Linear
from inference_svc.models.config import ModelConfig
from inference_svc.weights.quantization import QuantizedTensor


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """Config and weights; matrices stay packed, vectors are float32."""

    config: ModelConfig
    tensors: Mapping[str, QuantizedTensor | Tensor]

    def packed(self, name: str) -> QuantizedTensor:
        """A matrix."""
        tensor = self.tensors[name]
        assert isinstance(tensor, QuantizedTensor), name
        return tensor

    def dense(self, name: str) -> Tensor:
        """A vector."""
        tensor = self.tensors[name]
        assert isinstance(tensor, Tensor), name
        return tensor

    def linear(self, path: str) -> Linear:
        """A linear layer, with its bias if it has one."""
        return Linear(path, self.packed(f"{path}.weight"), self._bias(path))

    def head(self) -> Linear:
        """The layer that makes logits; its weight may be that of the embedding."""
        holder = "model.embed_tokens" if self.config.tied_embeddings else "lm_head"
        return Linear("lm_head", self.packed(f"{holder}.weight"), self._bias("lm_head"))

    def _bias(self, path: str) -> Tensor | None:
        bias = self.tensors.get(f"{path}.bias")
        assert not isinstance(bias, QuantizedTensor), path
        return bias

    def to(self, device: torch.device) -> Checkpoint:
        """The same on another device."""
        return Checkpoint(self.config, {name: tensor.to(device) for name, tensor in self.tensors.items()})

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return next(iter(self.tensors.values())).device

    @property
    def nbytes(self) -> int:
        """Bytes of the weights in memory."""
        return sum(tensor.nbytes for tensor in self.tensors.values())
