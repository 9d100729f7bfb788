"""The classifier of an X-LoRA mixture in the original layout: `xlora_config.json` and its safetensors file."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from inference_svc.adapters.adapter_files import read_adapter_tensors, tensor_problem
from inference_svc.adapters.bank import Classifier, XLoraConfig
from inference_svc.adapters.base_model import AdapterLimits, BaseModelShape, summary
from inference_svc.adapters.config_file import ConfigFile, read_config
from inference_svc.errors import AdapterMalformed, AdapterUnfit, AdapterUnsupported, OrderingUnfit

XLORA_CONFIG_NAME = "xlora_config.json"
CLASSIFIER_NAME = "xlora_classifier.safetensors"

_INNER = re.compile(r"inner\.(0|[1-9][0-9]{0,5})\.(weight|bias)")
_UNDERSTOOD = frozenset(XLoraConfig.__dataclass_fields__) | {"adapters"}
_HARMLESS = frozenset({"device", "use_trainable_adapters"})  # of training only
MAX_DEPTH = 64


def read_xlora_config(folder: Path, order: Sequence[str]) -> XLoraConfig:
    """Read `xlora_config.json`; missing keys take the defaults of the xlora package.

    Raises:
        SourceNotFound: there is no such file.
        AdapterMalformed: the file, a key or a value is broken; names file, key and value.
        AdapterUnsupported: a scaling pass value other than 0, or a key that nobody here knows.
        OrderingUnfit: the file lists other adapters than `order`, or in another order.
    """
    file = read_config(folder / XLORA_CONFIG_NAME, f"{folder.name}/{XLORA_CONFIG_NAME}")
    file.refuse_unknown(_UNDERSTOOD | _HARMLESS)
    _check_adapters(file, order)
    top_k = None if file.values.get("top_k_lora") is None else file.integer("top_k_lora", None, minimum=1)
    if top_k is not None and top_k > len(order):
        file.refuse("top_k_lora", f"at most the number of adapters, {len(order)}")
    config = XLoraConfig(
        hidden_size=file.integer("hidden_size", None, minimum=1),
        base_model_id=file.text("base_model_id", None),
        layerwise_scalings=file.boolean("layerwise_scalings", False),
        enable_relu_and_dropout=file.boolean("enable_relu_and_dropout", True),
        xlora_depth=file.integer("xlora_depth", 1, minimum=1),
        xlora_size=file.integer("xlora_size", 2048, minimum=1),
        xlora_dropout_p=file.number("xlora_dropout_p", 0.2),
        use_bias=file.boolean("use_bias", True),
        enable_softmax=file.boolean("enable_softmax", True),
        enable_softmax_topk=file.boolean("enable_softmax_topk", False),
        softmax_temperature=file.number("softmax_temperature", 1.0),
        scaling_pass_value=_scaling_pass_value(file),
        global_scaling_weight=file.number("global_scaling_weight", 1.0),
        top_k_lora=top_k,
    )
    if config.xlora_depth > MAX_DEPTH:
        file.refuse("xlora_depth", f"at most {MAX_DEPTH}")
    if config.softmax_temperature <= 0:
        file.refuse("softmax_temperature", "a number above 0")
    if not 0 <= config.xlora_dropout_p <= 1:
        file.refuse("xlora_dropout_p", "a number from 0 to 1")
    if config.enable_softmax_topk and top_k is None:
        file.refuse("enable_softmax_topk", "`top_k_lora` to be set with it")
    return config


def _scaling_pass_value(file: ConfigFile) -> float:
    if "scaling_pass_value" in file.values and file.values["scaling_pass_value"] is None:
        value = "null (1 / number of adapters)"
    else:
        number = file.number("scaling_pass_value", 0.0)
        if number == 0.0:
            return 0.0
        value = str(number)
    raise AdapterUnsupported(
        f"{file.name}: `scaling_pass_value` {value} is not supported: only 0, the plain base model, is",
        file=file.name,
        key="scaling_pass_value",
        value=value,
    )


def _check_adapters(file: ConfigFile, order: Sequence[str]) -> None:
    """`adapters` is a list in training order, or a dict whose order other tools do not keep."""
    adapters = file.values.get("adapters")
    if adapters is None:
        return
    if not isinstance(adapters, list | dict) or not all(isinstance(name, str) for name in adapters):
        file.refuse("adapters", "a list of names, or an object by name")
    trained = list(adapters)
    reordered = isinstance(adapters, list) and sorted(trained) == sorted(order) and trained != list(order)
    if len(trained) != len(order) or reordered:
        raise OrderingUnfit(
            f"`order` has {list(order)}, but {file.name} was trained with the adapters {trained}: "
            "`order` must have the training order",
            file=file.name,
        )


def load_classifier(
    folder: Path, config: XLoraConfig, num_experts: int, num_layers: int, base: BaseModelShape, limits: AdapterLimits
) -> Classifier:
    """Read `xlora_classifier.safetensors`; tensors are float32 on the base model's device.

    The index of `inner.{i}` counts ReLU and dropout modules where they are interleaved, so only its order matters.

    Raises:
        SourceNotFound: there is no such file.
        AdapterMalformed: a tensor is missing, left over, broken, or of another shape than the config says.
        AdapterUnfit: its hidden size is not the base model's.
        OrderingUnfit: its rows are not those of the ordering.
    """
    name = f"{folder.name}/{CLASSIFIER_NAME}"
    if config.hidden_size != base.hidden_size:
        raise AdapterUnfit(
            f"{folder.name}/{XLORA_CONFIG_NAME}: `hidden_size` is {config.hidden_size}, "
            f"the base model has {base.hidden_size}",
            key="hidden_size",
        )
    tensors = read_adapter_tensors(folder / CLASSIFIER_NAME, name, limits.max_bytes)
    indices = sorted({int(match[1]) for key in tensors if (match := _INNER.fullmatch(key))})
    prefixes = [f"inner.{index}" for index in indices] + ["last"]
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
    rows = tensors["last.weight"].shape[0]
    if rows != num_experts * (num_layers if config.layerwise_scalings else 1):
        layers = f" for each of {num_layers} layers" if config.layerwise_scalings else ""
        raise OrderingUnfit(
            f"{name}: `last.weight` has {rows} rows, the ordering asks for {num_experts} adapters{layers}",
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


def _shape_problems(tensors: Mapping[str, Tensor], prefixes: Sequence[str], config: XLoraConfig) -> list[str]:
    """Layer i reads what layer i - 1 writes; the rows of `last` are the ordering's matter."""
    problems = []
    inputs = config.hidden_size
    for prefix in prefixes:
        rows, columns = tensors[f"{prefix}.weight"].shape
        wanted = rows if prefix == "last" else config.xlora_size
        if (rows, columns) != (wanted, inputs):
            problems.append(f"`{prefix}.weight` has shape {[rows, columns]}, expected {[wanted, inputs]}")
        if config.use_bias and tensors[f"{prefix}.bias"].shape[0] != rows:
            problems.append(f"`{prefix}.bias` has {tensors[f'{prefix}.bias'].shape[0]} values, expected {rows}")
        inputs = config.xlora_size
    return problems
