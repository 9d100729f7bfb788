"""The tensors of an X-LoRA classifier, in the original layout and in PEFT's."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from inference_svc.adapters.adapter_files import read_adapter_tensors, tensor_problem
from inference_svc.adapters.base_model import AdapterLimits, BaseModelShape, summary
from inference_svc.adapters.classifier import Classifier, XLoraConfig
from inference_svc.adapters.xlora_config import PEFT, XLoraLayout
from inference_svc.errors import AdapterMalformed, AdapterUnfit, OrderingUnfit

_INNER = re.compile(r"inner\.(0|[1-9][0-9]{0,5})\.(weight|bias)")
PEFT_PREFIX = "base_model.internal_xlora_classifier.layers."


def read_classifier_file(
    folder: Path, layout: XLoraLayout, config: XLoraConfig, num_experts: int, limits: AdapterLimits
) -> dict[str, Tensor]:
    """The tensors of the classifier's file.

    Raises:
        SourceNotFound: there is no such file.
        AdapterMalformed: it is broken, or PEFT has lost layers of it.
        LimitReached: it is too large.
    """
    name = f"{folder.name}/{layout.classifier_name}"
    tensors = read_adapter_tensors(folder / layout.classifier_name, name, limits.max_bytes)
    if layout is PEFT:
        _refuse_lost_layers(
            name, {f"{prefix}.weight" for prefix in _peft_prefixes(config)} - tensors.keys(), num_experts
        )
    return tensors


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


def _refuse_lost_layers(name: str, missing: set[str], num_experts: int) -> None:
    """PEFT (seen in 0.21.2) drops from what it saves every tensor with `.N.` in its name, N being an adapter's name."""
    indices = sorted({int(key.removeprefix(PEFT_PREFIX).split(".")[0]) for key in missing})
    lost = [str(index) for index in indices if index < num_experts]
    if lost and lost == [str(index) for index in indices]:
        raise AdapterMalformed(
            f"{name}: layer {', '.join(lost)} of the classifier was lost when PEFT saved it: PEFT leaves out what has "
            "the name of an adapter in its own, puts random layers in their place when it loads, and saves adapters "
            "with the same fault. Save the tensors of `internal_xlora_classifier` from the trained model with "
            "safetensors, and take the adapters as they were before",
            file=name,
            lost_layers=",".join(lost),
        )


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
