"""The tensors of a LoRA adapter as its header names them: one pair of matrices for each layer."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from ordering_svc.domain.headers import JsonConfig, TensorHeaders
from ordering_svc.domain.problems import shown

SHOWN_FINDINGS = 5
# `lora_model` is there when PEFT saved the adapter as part of an X-LoRA; then the whole base model is in the file too.
_KEY = re.compile(r"base_model\.(?:lora_model\.)?model\.(.+)\.lora_([AB])(?:\.default)?\.weight")
_BASE_KEY = re.compile(r"base_model\.lora_model\.model\.(?!.*\.lora_).+\.(?:weight|bias)")
# Parts of the names of tensors that belong to more than plain LoRA; they have no pair of their own.
_BESIDE_LORA = (
    "lora_magnitude_vector",
    "lora_embedding_",
    "modules_to_save",
    ".base_layer.",
    "trainable_tokens",
    "internal_xlora_classifier.",
    ".bias",
)
_LITERAL = re.compile(r"[\w.]+", re.ASCII)
_FLOATING = frozenset(("F64", "F32", "F16", "BF16"))


@dataclass(slots=True)
class AdapterLayers:
    """What the header says of an adapter's layers, and which findings there are, by code."""

    shapes: dict[str, tuple[int, int, int]] = field(default_factory=dict)  # path -> (rank, out_features, in_features)
    findings: dict[str, list[str]] = field(default_factory=dict)

    def find(self, code: str, what: str) -> None:
        """Note something."""
        self.findings.setdefault(code, []).append(what)


def layers_of(tensors: TensorHeaders) -> AdapterLayers:
    """The layers of an adapter; what cannot be taken is among the findings."""
    layers = AdapterLayers()
    halves: dict[str, dict[str, tuple[int, ...] | None]] = {}
    for name, tensor in tensors.items():
        match = _KEY.fullmatch(name)
        if match is None:
            if not any(part in name for part in _BESIDE_LORA) and not _BASE_KEY.fullmatch(name):
                layers.find("ADAPTER_TENSOR_UNKNOWN", f"`{shown(name)}`")
            continue
        path, half = match.groups()
        found = halves.setdefault(path, {})
        found[half] = None
        if tensor.dtype not in _FLOATING:
            layers.find("ADAPTER_TENSOR_DTYPE", f"`{shown(name)}` is {tensor.dtype}")
        elif len(tensor.shape) != 2 or 0 in tensor.shape:
            layers.find("ADAPTER_TENSOR_SHAPE", f"`{shown(name)}` has the shape {list(tensor.shape)}")
        else:
            found[half] = tensor.shape
    for path, found in halves.items():
        a, b = found.get("A"), found.get("B")
        if len(found) < 2:
            layers.find("ADAPTER_TENSOR_UNPAIRED", f"`{shown(path)}` has only lora_{next(iter(found))}")
        elif a is not None and b is not None and a[0] != b[1]:
            layers.find("ADAPTER_TENSOR_SHAPE", f"`{shown(path)}` has lora_A {list(a)} and lora_B {list(b)}")
        elif a is not None and b is not None:
            layers.shapes[path] = (a[0], b[0], a[1])
    return layers


def check_ranks(layers: AdapterLayers, config: JsonConfig) -> None:
    """The ranks of the tensors are those of `r` and `rank_pattern`, as PEFT looks them up.

    Patterns that are more than names are not run: a regular expression from a file could take for ever.
    """
    rank = config.get("r", 8)
    patterns = config.get("rank_pattern") or {}
    if type(rank) is not int or not isinstance(patterns, Mapping) or not all(map(_LITERAL.fullmatch, patterns)):
        return
    for path, (found, _, _) in layers.shapes.items():
        key = next((key for key in patterns if path == key or path.endswith(f".{key}")), None)
        wanted = rank if key is None else patterns[key]
        if found != wanted:
            layers.find("ADAPTER_RANK_MISMATCH", f"`{shown(path)}` has rank {found}, the config says {shown(wanted)}")


def check_shapes(layers: AdapterLayers, base: Mapping[str, tuple[int, ...] | None]) -> None:
    """Each pair fits the weight of its layer, where the base model has it and tells its shape."""
    for path, (_, *features) in layers.shapes.items():
        shape = base.get(path)
        if path not in base:
            layers.find("ADAPTER_LAYER_UNKNOWN", f"`{shown(path)}`")
        elif shape is not None and tuple(features) != shape:
            layers.find("ADAPTER_SHAPE_MISMATCH", f"`{shown(path)}` is for {features}, the base has {list(shape)}")


def some(findings: Iterable[str]) -> str:
    """The first findings, and how many more there are."""
    listed = list(findings)
    more = f" and {len(listed) - SHOWN_FINDINGS} more" if len(listed) > SHOWN_FINDINGS else ""
    return ", ".join(listed[:SHOWN_FINDINGS]) + more


def special_features(config: JsonConfig) -> Iterator[str]:
    """Settings beyond plain LoRA, as `key: value`."""
    for key, plain in (("bias", "none"), ("fan_in_fan_out", False), ("init_lora_weights", True)):
        value = config.get(key, plain)
        is_plain = value == plain or (
            key == "init_lora_weights" and value in (None, False, "gaussian", "orthogonal", "eva")
        )
        if not is_plain:
            yield f"{key}: {shown(value)}"
    for key in (
        "use_dora",
        "use_rslora",
        "rank_pattern",
        "alpha_pattern",
        "modules_to_save",
        "alora_invocation_tokens",
    ):
        if config.get(key):
            yield f"{key}: {shown(config[key])}"
