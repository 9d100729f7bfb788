"""A base model of two layers, two adapters and an X-LoRA over them as files: sound, until a test spoils something."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ordering_svc.domain.ordering import AdapterKind
from ordering_svc.domain.problems import Problem
from ordering_svc.file_headers.safetensors import DTYPE_BITS
from ordering_svc.judge import Against, Judge
from ordering_svc.model_config.reader import LocalModel, ModelReader, ModelSource

HIDDEN, INNER, VOCABULARY, RANK = 8, 16, 32, 2
MODEL_ID = "org/base"
NAMES = ("math", "bio")
SHAPES = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (4, HIDDEN),
    "self_attn.v_proj": (4, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (INNER, HIDDEN),
    "mlp.up_proj": (INNER, HIDDEN),
    "mlp.down_proj": (HIDDEN, INNER),
}
LAYERS = {f"model.layers.{i}.{m}": SHAPES[m] for i in range(2) for m in ("self_attn.q_proj", "self_attn.v_proj")}

Tensors = dict[str, tuple[str, tuple[int, ...]]]


def header_of(tensors: Mapping[str, tuple[str, tuple[int, ...]]]) -> tuple[bytes, int]:
    """The beginning of a safetensors file, and how many bytes of tensors follow."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (dtype, shape) in tensors.items():
        begin, end = end, end + math.prod(shape) * DTYPE_BITS[dtype] // 8
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text, end


def write_safetensors(path: Path, tensors: Mapping[str, tuple[str, tuple[int, ...]]]) -> None:
    """A file of zeros."""
    header, nbytes = header_of(tensors)
    path.write_bytes(header + bytes(nbytes))


def lora_tensors(layers: Mapping[str, tuple[int, int]] = LAYERS, rank: int = RANK) -> Tensors:
    """As PEFT saves them."""
    tensors: Tensors = {}
    for path, (rows, columns) in layers.items():
        tensors[f"base_model.model.{path}.lora_A.weight"] = ("F32", (rank, columns))
        tensors[f"base_model.model.{path}.lora_B.weight"] = ("F32", (rows, rank))
    return tensors


@dataclass
class Adapter:
    """The folder of one adapter; None: no such file."""

    config: Any
    tensors: Tensors | None = field(default_factory=lora_tensors)
    others: dict[str, str] = field(default_factory=dict)


def _adapter() -> Adapter:
    return Adapter(
        {
            "peft_type": "LORA",
            "r": RANK,
            "lora_alpha": 4,
            "target_modules": ["q_proj", "v_proj"],
            "base_model_name_or_path": MODEL_ID,
        }
    )


def _base() -> Tensors:
    tensors: Tensors = {"model.embed_tokens.weight": ("BF16", (VOCABULARY, HIDDEN))}
    for layer in range(2):
        tensors |= {f"model.layers.{layer}.{m}.weight": ("BF16", shape) for m, shape in SHAPES.items()}
        tensors[f"model.layers.{layer}.input_layernorm.weight"] = ("BF16", (HIDDEN,))
    return tensors


@dataclass
class World:
    """Everything that is judged together."""

    document: dict[str, Any] = field(
        default_factory=lambda: {
            "order": list(NAMES),
            "layers": {path: row for row, path in enumerate(LAYERS)},
            "base_model_id": MODEL_ID,
        }
    )
    kind: AdapterKind = AdapterKind.XLORA
    adapters: dict[str, Adapter] = field(default_factory=lambda: {name: _adapter() for name in NAMES})
    xlora: Any = field(
        default_factory=lambda: {
            "hidden_size": HIDDEN,
            "base_model_id": MODEL_ID,
            "adapters": list(NAMES),
            "layerwise_scalings": True,
            "enable_relu_and_dropout": False,
            "xlora_depth": 1,
        }
    )
    classifier: Tensors | None = field(
        default_factory=lambda: {
            "last.weight": ("F32", (len(NAMES) * len(LAYERS), HIDDEN)),
            "last.bias": ("F32", (len(NAMES) * len(LAYERS),)),
        }
    )
    base: Tensors | None = field(default_factory=_base)
    place: str = "xlora"

    def deepen(self, depth: int, size: int, *, indices: tuple[int, ...], relu: bool = True) -> None:
        """A classifier of several layers."""
        self.xlora |= {"xlora_depth": depth, "xlora_size": size, "enable_relu_and_dropout": relu}
        rows = len(NAMES) * len(LAYERS)
        self.classifier = {}
        columns = HIDDEN
        for index in indices:
            self.classifier |= {
                f"inner.{index}.weight": ("F32", (size, columns)),
                f"inner.{index}.bias": ("F32", (size,)),
            }
            columns = size
        self.classifier |= {"last.weight": ("F32", (rows, columns)), "last.bias": ("F32", (rows,))}

    def to_peft(self, depth: int, kept: tuple[int, ...]) -> None:
        """PEFT's layout, with the layers that its save_pretrained keeps."""
        rows = len(NAMES) * len(LAYERS)
        sizes = [HIDDEN, *[6] * (depth - 1), rows]
        self.xlora = self.xlora | {"peft_type": "XLORA", "xlora_depth": depth, "xlora_size": 6, "xlora_dropout_p": 0.2}
        self.xlora["base_model_name_or_path"] = self.xlora.pop("base_model_id")
        self.classifier = {}
        for place in kept:
            prefix = f"base_model.internal_xlora_classifier.layers.{place * 3}"
            self.classifier[f"{prefix}.weight"] = ("F32", (sizes[place + 1], sizes[place]))
            self.classifier[f"{prefix}.bias"] = ("F32", (sizes[place + 1],))

    def out_of_peft(self) -> None:
        """As PEFT saves an X-LoRA of one layer: the classifier in the file of adapter 0, and the base beside it."""
        self.to_peft(1, (0,))
        layers = "base_model.internal_xlora_classifier.layers."
        assert self.classifier is not None
        for name, adapter in self.adapters.items():
            tensors = {key.replace("base_model.", "base_model.lora_model.", 1): t for key, t in lora_tensors().items()}
            tensors |= {f"base_model.lora_model.model.{key}": tensor for key, tensor in _base().items()}
            if name == NAMES[0]:
                tensors |= {layers + key.rpartition(".")[2]: tensor for key, tensor in self.classifier.items()}
            adapter.tensors = tensors
        self.classifier = {}

    def write(self, folder: Path) -> None:
        """All files below a folder: `base/` and `xlora/`."""
        base, place = folder / "base", folder / "xlora"
        base.mkdir()
        place.mkdir()
        (base / "config.json").write_text('{"model_type": "llama", "num_hidden_layers": 2}')
        if self.base is not None:
            write_safetensors(base / "model.safetensors", self.base)
        is_peft = isinstance(self.xlora, dict) and self.xlora.get("peft_type") == "XLORA"
        if self.xlora is not None:
            name = "adapter_config.json" if is_peft else "xlora_config.json"
            (place / name).write_text(self.xlora if isinstance(self.xlora, str) else json.dumps(self.xlora))
        if self.classifier is not None:
            name = "adapter_model.safetensors" if is_peft else "xlora_classifier.safetensors"
            write_safetensors(place / name, self.classifier)
        for own_name, adapter in self.adapters.items():
            name = str(NAMES.index(own_name)) if is_peft else own_name
            (place / name).mkdir(parents=True)
            if adapter.config is not None:
                text = adapter.config if isinstance(adapter.config, str) else json.dumps(adapter.config)
                (place / name / "adapter_config.json").write_text(text)
            if adapter.tensors is not None:
                write_safetensors(place / name / "adapter_model.safetensors", adapter.tensors)
            for other, content in adapter.others.items():
                (place / name / other).write_text(content)

    def problems(self, folder: Path, model: ModelSource | None = None) -> tuple[Problem, ...]:
        """All problems, with model and adapters looked at."""
        judge = Judge(ModelReader([folder]), [folder], [folder])
        against = Against(self.kind, model or LocalModel("base"), "", True, self.place)
        return judge.problems(json.dumps(self.document).encode(), against)
