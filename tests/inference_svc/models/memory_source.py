"""A model whose files are in memory, for tests of what is read of them and in which order."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from gguf import GGMLQuantizationType
from torch import Tensor

from inference_svc.models.architectures import ARCHITECTURES
from inference_svc.models.loading import read_config
from inference_svc.models.tensor_plan import planned_tensors
from inference_svc.weights.quantization import QuantizedTensor
from inference_svc.weights.source import SourceFormat


@dataclass(frozen=True)
class MemoryEntry:
    """A dense tensor."""

    name: str
    shape: tuple[int, ...]
    quantization: GGMLQuantizationType = GGMLQuantizationType.F32

    @property
    def nbytes(self) -> int:
        return 4 * math.prod(self.shape)


@dataclass
class MemorySource:
    """Float32 tensors by name; remembers which of them were asked for."""

    format: SourceFormat
    metadata: Mapping[str, Any]
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    path: Path = Path("memory")
    asked: list[str] = field(default_factory=list)

    @property
    def entries(self) -> dict[str, MemoryEntry]:
        return {name: MemoryEntry(name, tuple(tensor.shape)) for name, tensor in self.tensors.items()}

    def tensor(self, name: str) -> QuantizedTensor:
        self.asked.append(name)
        tensor = self.tensors[name].float().contiguous()
        rows = math.prod(tensor.shape[:-1])
        data = tensor.reshape(rows, -1).view(torch.uint8)
        return QuantizedTensor(data, GGMLQuantizationType.F32, (rows, tensor.shape[-1]))


def random_source(form: SourceFormat, metadata: Mapping[str, Any]) -> MemorySource:
    """A model of random weights, as its own metadata asks for."""
    embedding = {"token_embd.weight": torch.zeros(int(metadata.get("vocab", 32)), 8), "output.weight": torch.zeros(1)}
    config = read_config(MemorySource(form, metadata, embedding if form is SourceFormat.GGUF else {}))
    draft = MemorySource(form, metadata)
    generator = torch.Generator().manual_seed(0)
    tensors = {
        planned.source: torch.randn(planned.source_shape, generator=generator)
        for planned in planned_tensors(ARCHITECTURES[config.architecture], config, draft)
    }
    return MemorySource(form, metadata, tensors)
