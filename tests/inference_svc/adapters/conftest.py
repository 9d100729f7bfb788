"""A tiny base model, and tiny random adapters for it, written as PEFT and the xlora package write them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from gguf import GGMLQuantizationType
from safetensors.torch import save_file
from torch import Tensor

from inference_svc.adapters.base_model import AdapterLimits, BaseModelShape
from inference_svc.adapters.lora import LoadedLora, load_lora
from inference_svc.weights.quantization import QuantizedTensor

HIDDEN, WIDE = 8, 12
BASE_ID = "maker/tiny"
MODULES = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.v_proj": (4, HIDDEN),
    "mlp.up_proj": (WIDE, HIDDEN),
    "mlp.down_proj": (HIDDEN, WIDE),
}


@dataclass(frozen=True)
class AdapterWriter:
    """Writes adapters below one folder."""

    root: Path
    base: BaseModelShape

    def tensors(self, paths: list[str], rank: int = 2, seed: int = 0) -> dict[str, Tensor]:
        """Random A and B for module paths."""
        generator = torch.Generator().manual_seed(seed)
        tensors = {}
        for path in paths:
            rows, columns = self.base.linear_shapes[path]
            tensors[f"base_model.model.{path}.lora_A.weight"] = torch.randn(rank, columns, generator=generator)
            tensors[f"base_model.model.{path}.lora_B.weight"] = torch.randn(rows, rank, generator=generator)
        return tensors

    def lora(
        self,
        name: str,
        *,
        paths: list[str] | None = None,
        rank: int = 2,
        seed: int = 0,
        tensors: Mapping[str, Tensor] | None = None,
        **config: object,
    ) -> Path:
        """A LoRA adapter; `config` overrides keys of adapter_config.json."""
        folder = self.root / name
        folder.mkdir(parents=True, exist_ok=True)
        chosen = list(self.base.linear_shapes)[:4] if paths is None else paths
        written = self.tensors(chosen, rank, seed) if tensors is None else dict(tensors)
        save_file(written, folder / "adapter_model.safetensors")
        values: dict[str, object] = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": BASE_ID,
            "r": rank,
            "lora_alpha": 2 * rank,
            "target_modules": sorted(chosen) if tensors is None else None,
            "lora_dropout": 0.1,
            "peft_version": "0.21.2",
        }
        (folder / "adapter_config.json").write_text(json.dumps(values | config))
        return folder

    def xlora(
        self,
        name: str,
        experts: Mapping[str, list[str]],
        *,
        classifier: Mapping[str, Tensor] | None = None,
        without: tuple[str, ...] = (),
        **config: object,
    ) -> Path:
        """An X-LoRA mixture of depth 1, one row a layer; expert i has rank i + 1."""
        folder = self.root / name
        for index, (expert, paths) in enumerate(experts.items()):
            self.lora(f"{name}/{expert}", paths=paths, rank=index + 1, seed=index)
        layers = len({path for paths in experts.values() for path in paths})
        rows = len(experts) * layers
        generator = torch.Generator().manual_seed(9)
        last = {
            "last.weight": torch.randn(rows, HIDDEN, generator=generator),
            "last.bias": torch.randn(rows, generator=generator),
        }
        save_file(last if classifier is None else dict(classifier), folder / "xlora_classifier.safetensors")
        values = {"hidden_size": HIDDEN, "base_model_id": BASE_ID, "layerwise_scalings": True} | config
        (folder / "xlora_config.json").write_text(
            json.dumps({key: value for key, value in values.items() if key not in without})
        )
        return folder


@pytest.fixture
def base() -> BaseModelShape:
    """Two layers of four linear modules, and the head."""
    generator = torch.Generator().manual_seed(3)

    def packed(shape: tuple[int, int]) -> QuantizedTensor:
        dense = torch.randn(shape, generator=generator)
        return QuantizedTensor(dense.view(torch.uint8), GGMLQuantizationType.F32, shape)

    shapes = {f"model.layers.{layer}.{module}": shape for layer in range(2) for module, shape in MODULES.items()}
    shapes |= {"lm_head": (32, HIDDEN)}
    weights = {path: packed(shape) for path, shape in shapes.items()}
    return BaseModelShape(
        architecture="llama",
        base_model_id=BASE_ID,
        hidden_size=HIDDEN,
        linear_shapes=shapes,
        is_quantized=True,
        device=torch.device("cpu"),
        weights=weights | {"model.embed_tokens": weights["lm_head"]},
    )


@pytest.fixture
def limits() -> AdapterLimits:
    """The defaults."""
    return AdapterLimits()


@pytest.fixture
def write(tmp_path: Path, base: BaseModelShape) -> AdapterWriter:
    """Writes adapters below the test's own folder."""
    return AdapterWriter(tmp_path, base)


@pytest.fixture
def lora(write: AdapterWriter, base: BaseModelShape, limits: AdapterLimits) -> Callable[[str, int], LoadedLora]:
    """Writes and loads a LoRA by name and seed."""

    def make(name: str, seed: int) -> LoadedLora:
        return load_lora(write.lora(name, seed=seed), base, limits)

    return make
