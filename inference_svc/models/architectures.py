"""All architectures there are, and which one a model's files are of."""

from __future__ import annotations

import reprlib

from inference_svc.models.architecture import Architecture
from inference_svc.models.config import ModelConfig
from inference_svc.models.gemma import GEMMA, GEMMA2
from inference_svc.models.llama import LLAMA, MISTRAL, QWEN2
from inference_svc.models.mixtral import MIXTRAL
from inference_svc.models.phi import PHI
from inference_svc.models.phi3 import PHI3
from inference_svc.models.starcoder2 import STARCODER2
from inference_svc.weights.errors import UnsupportedFile
from inference_svc.weights.source import SourceFormat, TensorSource

ARCHITECTURES = {
    architecture.name: architecture
    for architecture in (LLAMA, MISTRAL, PHI3, GEMMA, GEMMA2, QWEN2, PHI, STARCODER2, MIXTRAL)
}


def architecture_of(source: TensorSource) -> Architecture:
    """The architecture that config.json or the GGUF metadata names.

    Raises:
        UnsupportedFile: it is none of ours; lists those there are.
    """
    with_experts = ""
    if source.format is SourceFormat.GGUF:
        key, name = "general.architecture", source.metadata.get("general.architecture")
        found = [architecture for architecture in ARCHITECTURES.values() if name and architecture.gguf_name == name]
        has_experts = bool(source.metadata.get(f"{name}.expert_count"))
        with_experts = " with experts" if has_experts else ""
        found = [architecture for architecture in found if architecture.has_experts == has_experts]
        known = {architecture.gguf_name for architecture in ARCHITECTURES.values() if architecture.gguf_name}
    else:
        key, name = "model_type", source.metadata.get("model_type")
        found = [architecture for architecture in ARCHITECTURES.values() if architecture.name == name]
        known = set(ARCHITECTURES)
    if not found:
        said = f"architecture {reprlib.repr(name)}{with_experts} (`{key}`)"
        raise UnsupportedFile(str(source.path), f"{said} is not supported: {', '.join(sorted(known))} are")
    return found[0]


def linear_shapes(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """(out_features, in_features) of every linear layer that an adapter can change, in PEFT's module order."""
    return ARCHITECTURES[config.architecture].linear_shapes(config)
