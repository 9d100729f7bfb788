"""What adapters must fit: the shape of the loaded base model, and the limits of the service."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from inference_svc.weights.quantization import QuantizedTensor, bits_of

# Where adapters may sit on a quantized base, with the reference system's own lists in its own order. It has none for
# other architectures: there every linear layer may be adapted, quantized or not.
QUANTIZED_LAYER_SUFFIXES: Mapping[str, tuple[str, ...]] = {
    "llama": (
        "self_attn.q_proj",
        "self_attn.k_proj",
        "self_attn.v_proj",
        "self_attn.o_proj",
        "mlp.up_proj",
        "mlp.down_proj",
        "mlp.gate_proj",
        "lm_head",
    ),
    "phi3": ("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj", "lm_head"),
}


_NUMBER = re.compile(r"\.[0-9]+\.")


@dataclass(frozen=True, slots=True)
class AdapterLimits:
    """How much adapters may take; versions that are retired but still in use count too."""

    max_adapters: int = 64
    max_rank: int = 256
    max_bytes: int = 8 << 30
    evict: bool = False  # make room by evicting the least recently used, instead of refusing


@dataclass(frozen=True, slots=True, eq=False)
class BaseModelShape:
    """What adapters need to know of the base model."""

    architecture: str  # for instance `llama`
    base_model_id: str  # empty: not known
    hidden_size: int
    linear_shapes: Mapping[str, tuple[int, int]]  # module path -> (out_features, in_features)
    is_quantized: bool
    device: torch.device  # where adapter tensors go
    weights: Mapping[str, QuantizedTensor] = field(default_factory=dict)  # of linear layers and embedding, packed
    dtype: torch.dtype = torch.float32  # of activations, and so of adapter matrices

    @property
    def has_tied_head(self) -> bool:
        """The output head is the embedding."""
        head = self.weights.get("lm_head")
        return head is not None and head is self.weights.get("model.embed_tokens")

    def layer_problems(self, paths: Iterable[str]) -> list[str]:
        """One sentence for each module path that no adapter of this base model can change.

        Source of the first sentence: `verify_sanity_adapters` of mistral.rs, which users know.
        """
        suffixes = QUANTIZED_LAYER_SUFFIXES.get(self.architecture, ()) if self.is_quantized else ()
        problems = []
        for path in paths:
            if suffixes and not path.endswith(suffixes):
                names = json.dumps(suffixes)
                problems.append(f"Got a layer name `{path}` in the ordering, expected it to end with one of {names}")
            elif path not in self.linear_shapes:
                names = json.dumps(self._layer_names())
                problems.append(
                    f"layer `{path}` is not a linear layer of the base model, a {self.architecture}, which has {names}"
                )
        return problems

    def _layer_names(self) -> tuple[str, ...]:
        """The linear layers that there are, without the number of the decoder layer or of an expert."""
        numbered = (_NUMBER.sub(".N.", path) for path in self.linear_shapes)
        return tuple(dict.fromkeys(path.removeprefix("model.layers.N.") for path in numbered))

    @property
    def bits_per_weight(self) -> float | None:
        """Of the linear layers, head apart: what their weights take as they are packed; None if they are not known."""
        packed = [self.weights[path] for path in self.linear_shapes if path != "lm_head" and path in self.weights]
        counts = [tensor.shape[0] * tensor.shape[1] for tensor in packed]
        bits = sum(count * bits_of(tensor.precision) for tensor, count in zip(packed, counts, strict=True))
        return bits / sum(counts) if counts else None

    def is_another_model(self, model_id: str) -> bool:
        """True if both ids are known, neither is a local path, and they differ (case counts)."""
        return is_comparable(model_id) and is_comparable(self.base_model_id) and model_id != self.base_model_id


def is_comparable(model_id: str) -> bool:
    """False for an id that is unknown (empty) or a local path: a folder's name says nothing about its content."""
    if not model_id or model_id.startswith(("/", ".", "~")):
        return False
    try:
        return not Path(model_id).exists()
    except (OSError, ValueError):  # too long for a path, or a NUL in it
        return True


def summary(problems: list[str], shown: int = 5) -> str:
    """The first problems and how many more there are."""
    more = len(problems) - shown
    return "; ".join(problems[:shown]) + (f"; and {more} more" if more > 0 else "")
