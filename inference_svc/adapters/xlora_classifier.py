"""The tensors of an X-LoRA classifier, in the original layout and in PEFT's."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from inference_svc.adapters.adapter_files import ContentDigest, read_adapter_tensors, tensor_problem
from inference_svc.adapters.base_model import AdapterLimits, BaseModelShape, summary
from inference_svc.adapters.classifier import Classifier, XLoraConfig
from inference_svc.adapters.xlora_config import PEFT, XLoraLayout
from inference_svc.errors import AdapterMalformed, AdapterUnfit, OrderingUnfit

_INNER = re.compile(r"inner\.(0|[1-9][0-9]{0,5})\.(weight|bias)")
PEFT_PREFIX = "base_model.internal_xlora_classifier.layers."


def read_classifier_file(
    folder: Path, layout: XLoraLayout, limits: AdapterLimits, digest: ContentDigest
) -> dict[str, Tensor]:
    """The tensors of the classifier's file; what was read goes into the digest.

    Raises:
        SourceNotFound: there is no such file.
        SourceChanged: it became shorter while it was read.
        AdapterMalformed: it is broken.
        LimitReached: it is too large.
    """
    content = hashlib.sha256()
    name = f"{folder.name}/{layout.classifier_name}"
    tensors = read_adapter_tensors(folder / layout.classifier_name, name, limits.max_bytes, content)
    digest.add_hash(layout.classifier_name, content)
    return tensors


def with_lost_layers(
    tensors: Mapping[str, Tensor], folder: Path, config: XLoraConfig, experts: Sequence[Mapping[str, Tensor]]
) -> dict[str, Tensor]:
    """A classifier in PEFT's layout, its layers that PEFT left out put back as far as it wrote them elsewhere.

    When PEFT (seen in 0.21.2) saves an X-LoRA, it takes every tensor with `.N.` in its name for one of adapter N: it
    leaves it out of the classifier's file, and writes it, without the number, to the file of that adapter.

    Args:
        tensors: those of the classifier's file.
        folder: of the mixture.
        config: of the mixture.
        experts: for each adapter the tensors of the classifier that lie in its file.

    Raises:
        AdapterMalformed: a layer is lost.
    """
    found = dict(tensors)
    missing = {prefix for prefix in _peft_prefixes(config) if f"{prefix}.weight" not in tensors}
    for index, expert in enumerate(experts):
        prefix = f"{PEFT_PREFIX}{index}"
        if prefix in missing and f"{PEFT_PREFIX}weight" in expert:
            missing.remove(prefix)
            found |= {f"{prefix}.{part}": expert[f"{PEFT_PREFIX}{part}"] for part in _parts_in(expert)}
    lost = sorted(int(prefix.removeprefix(PEFT_PREFIX)) for prefix in missing)
    if lost and lost[-1] < len(experts):
        listed, name = ", ".join(map(str, lost)), f"{folder.name}/{PEFT.classifier_name}"
        raise AdapterMalformed(
            f"{name}: layer {listed} of the classifier was lost when PEFT saved it: PEFT takes what has the number of "
            "an adapter in its name for a part of that adapter, and puts random layers in its place when it loads. "
            f"It writes the layer to {lost[0]}/{PEFT.classifier_name}, as `{PEFT_PREFIX}weight`, but the file here is "
            "without it: take the one that PEFT wrote, or save the tensors of `internal_xlora_classifier` from the "
            "trained model with safetensors",
            file=name,
            lost_layers=",".join(map(str, lost)),
        )
    return found


def classifier_from(
    tensors: Mapping[str, Tensor],
    folder: Path,
    layout: XLoraLayout,
    config: XLoraConfig,
    num_experts: int,
    num_layers: int,
    base: BaseModelShape,
) -> Classifier:
    """The classifier with its tensors float32 on the base model's device.

    Raises:
        AdapterMalformed: a tensor is missing, left over, broken, or of another shape than the config says.
        AdapterUnfit: its hidden size is not the base model's.
        OrderingUnfit: its rows are not those of the ordering.
    """
    name = f"{folder.name}/{layout.classifier_name}"
    if config.hidden_size != base.hidden_size:
        raise AdapterUnfit(
            f"{folder.name}/{layout.config_name}: `hidden_size` is {config.hidden_size}, "
            f"the base model has {base.hidden_size}",
            key="hidden_size",
        )
    prefixes = _peft_prefixes(config) if layout is PEFT else _original_prefixes(tensors)
    expected = {f"{prefix}.weight" for prefix in prefixes}
    expected |= {f"{prefix}.bias" for prefix in prefixes} if config.use_bias else set()
    problems = [f"`{key}` is missing" for key in sorted(expected - tensors.keys())]
    problems += [f"`{key}` is not a tensor of this classifier" for key in sorted(tensors.keys() - expected)]
    if len(prefixes) != config.xlora_depth:
        problems.append(f"it has {len(prefixes)} layers ({prefixes}), `xlora_depth` says {config.xlora_depth}")
    for key in sorted(expected & tensors.keys()):
        if problem := tensor_problem(key, tensors[key], dimensions=2 if key.endswith("weight") else 1):
            problems.append(problem)
    if not problems:
        problems = _shape_problems(tensors, prefixes, config)
    if problems:
        raise AdapterMalformed(f"{name}: {summary(problems)}", file=name, problems=str(len(problems)))
    last = f"{prefixes[-1]}.weight"
    rows = tensors[last].shape[0]
    if rows != num_experts * (num_layers if config.layerwise_scalings else 1):
        layers = f" for each of {num_layers} layers" if config.layerwise_scalings else ""
        raise OrderingUnfit(
            f"{name}: `{last}` has {rows} rows, the ordering asks for {num_experts} adapters{layers}",
            file=name,
            rows=str(rows),
        )

    def on_device(key: str) -> Tensor:
        return tensors[key].to(base.device, torch.float32).contiguous()

    return Classifier(
        config=config,
        num_layers=num_layers,
        num_experts=num_experts,
        weights=tuple(on_device(f"{prefix}.weight") for prefix in prefixes),
        biases=tuple(on_device(f"{prefix}.bias") if config.use_bias else None for prefix in prefixes),
    )


def _original_prefixes(tensors: Mapping[str, Tensor]) -> list[str]:
    """The index of `inner.{i}` may count ReLU and dropout modules between the layers, so only its order matters."""
    indices = sorted({int(match[1]) for key in tensors if (match := _INNER.fullmatch(key))})
    return [*(f"inner.{index}" for index in indices), "last"]


def _peft_prefixes(config: XLoraConfig) -> list[str]:
    """PEFT keeps one list of linear, ReLU and, where it drops something at all, dropout modules."""
    step = 3 if config.xlora_dropout_p > 0 else 2
    return [f"{PEFT_PREFIX}{step * index}" for index in range(config.xlora_depth)]


def _parts_in(expert: Mapping[str, Tensor]) -> list[str]:
    """Of the one layer of the classifier that lies in an adapter's file without its number."""
    return [part for part in ("weight", "bias") if f"{PEFT_PREFIX}{part}" in expert]


def _shape_problems(tensors: Mapping[str, Tensor], prefixes: Sequence[str], config: XLoraConfig) -> list[str]:
    """Layer i reads what layer i - 1 writes; the rows of the last are the ordering's matter."""
    problems = []
    inputs = config.hidden_size
    for prefix in prefixes:
        rows, columns = tensors[f"{prefix}.weight"].shape
        wanted = rows if prefix == prefixes[-1] else config.xlora_size
        if (rows, columns) != (wanted, inputs):
            problems.append(f"`{prefix}.weight` has shape {[rows, columns]}, expected {[wanted, inputs]}")
        if config.use_bias and tensors[f"{prefix}.bias"].shape[0] != rows:
            problems.append(f"`{prefix}.bias` has {tensors[f'{prefix}.bias'].shape[0]} values, expected {rows}")
        inputs = config.xlora_size
    return problems
