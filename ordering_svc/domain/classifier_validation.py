"""Judges the classifier of an X-LoRA against the order and the layers of a document, and against the base model.

Layouts: that of the xlora package (`last.*`, `inner.{i}.*` in `xlora_classifier.safetensors`), and PEFT's
(`base_model.internal_xlora_classifier.layers.{i}.*` in `adapter_model.safetensors`), whose `save_pretrained`
leaves out every layer with the number of an adapter; the file of that adapter has it as `layers.*`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from ordering_svc.domain.adapter_tensors import some
from ordering_svc.domain.adapter_validation import fault_problem
from ordering_svc.domain.checkpoint_validation import base_model_problems
from ordering_svc.domain.headers import FileFault, JsonConfig, TensorHeaders, XLoraFiles
from ordering_svc.domain.ordering import OrderingDocument
from ordering_svc.domain.problems import Problem, Severity, shown

MAX_DEPTH = 64
_PEFT_PREFIX = "base_model.internal_xlora_classifier."
PEFT_LAYERS = f"{_PEFT_PREFIX}layers."
_INNER = re.compile(r"(inner|layers)\.(0|[1-9][0-9]{0,5})\.(weight|bias)", re.ASCII)


@dataclass(frozen=True, slots=True)
class _Settings:
    """The keys of the config that decide the classifier's shape, with the defaults of the xlora package and PEFT."""

    hidden_size: int
    depth: int
    size: int
    layerwise: bool
    has_relu: bool
    has_bias: bool
    dropout: float


def classifier_problems(document: OrderingDocument, files: XLoraFiles, hidden_size: int | None) -> Iterator[Problem]:
    """Every problem of an X-LoRA's config and classifier; `hidden_size` is the base model's, where it is known."""
    settings = None
    if isinstance(files.config, FileFault):
        yield fault_problem(files.config, "order")
    else:
        found = list(_config_problems(document, files, files.config))
        yield from found
        if not any(problem.code == "XLORA_CONFIG_INVALID" for problem in found):
            settings = _settings(files.config, is_peft=files.is_peft)
    if settings is not None and hidden_size not in (None, settings.hidden_size):
        message = f"hidden_size is {settings.hidden_size}, the base model has {hidden_size}."
        yield Problem("XLORA_HIDDEN_SIZE", "base_model_id", message, file=files.config_file)
    if isinstance(files.classifier, FileFault):
        yield fault_problem(files.classifier, "order")
    elif settings is not None:
        tensors = _classifier_tensors(files.classifier, is_peft=files.is_peft)
        yield from _tensor_problems(document, files, tensors, settings)


def _config_problems(document: OrderingDocument, files: XLoraFiles, config: JsonConfig) -> Iterator[Problem]:
    num_adapters = len(document.order or ())
    whole = (("hidden_size", None, 2**31), ("xlora_depth", 1, MAX_DEPTH), ("xlora_size", 2048, 2**31))
    for key, default, most in whole:
        value = config.get(key, default)
        if type(value) is not int or not 1 <= value <= most:
            yield _invalid(files, key, value, f"a whole number from 1 to {most}")
    for key in ("layerwise_scalings", "enable_relu_and_dropout", "use_bias", "enable_softmax", "enable_softmax_topk"):
        if not isinstance(config.get(key, False), bool):
            yield _invalid(files, key, config[key], "true or false")
    top_k = config.get("top_k_lora")
    if top_k is not None and (type(top_k) is not int or not 1 <= top_k <= max(num_adapters, 1)):
        yield _invalid(files, "top_k_lora", top_k, f"a whole number from 1 to the {num_adapters} adapters of order")
    dropout, temperature = config.get("xlora_dropout_p", 0.2), config.get("softmax_temperature", 1.0)
    if isinstance(dropout, bool) or not isinstance(dropout, int | float) or not 0 <= dropout <= 1:
        yield _invalid(files, "xlora_dropout_p", dropout, "a number from 0 to 1")
    if isinstance(temperature, bool) or not isinstance(temperature, int | float) or not temperature > 0:
        yield _invalid(files, "softmax_temperature", temperature, "a number above 0")
    model_key = "base_model_name_or_path" if files.is_peft else "base_model_id"
    model_id = config.get(model_key)
    if isinstance(model_id, str):
        yield from base_model_problems(document, model_id, f"{files.config_file} says", files.config_file)
    elif model_id is not None or not files.is_peft:
        yield _invalid(files, model_key, model_id, "a string")
    yield from _order_problems(document, files, config)


def _order_problems(document: OrderingDocument, files: XLoraFiles, config: JsonConfig) -> Iterator[Problem]:
    """`adapters` is a list in training order, or an object whose order other tools do not keep."""
    trained, order = config.get("adapters"), list(document.order or ())
    if trained is None:
        return
    if not isinstance(trained, list | dict) or not all(isinstance(name, str) for name in trained):
        yield _invalid(files, "adapters", trained, "a list of names, or an object by name")
        return
    is_reordered = isinstance(trained, list) and sorted(trained) == sorted(order) and trained != order
    if len(trained) != len(order) or is_reordered:
        message = f"order is {shown(order)}, but the X-LoRA was trained with the adapters {shown(list(trained))}."
        yield Problem("XLORA_ORDER_DIFFERS", "order", message, file=files.config_file)


def _invalid(files: XLoraFiles, key: str, value: object, expected: str) -> Problem:
    message = f"{files.config_file} has {key} = `{shown(value)}`, expected {expected}."
    return Problem("XLORA_CONFIG_INVALID", "order", message, file=files.config_file)


def _settings(config: JsonConfig, *, is_peft: bool) -> _Settings:
    """The settings of a config that has no problems; PEFT's classifiers always have biases and ReLU."""

    def whole(key: str, default: int) -> int:
        value = config.get(key, default)
        assert isinstance(value, int)
        return value

    dropout = config.get("xlora_dropout_p", 0.2)
    assert isinstance(dropout, int | float)
    return _Settings(
        hidden_size=whole("hidden_size", 0),
        depth=whole("xlora_depth", 1),
        size=whole("xlora_size", 2048),
        layerwise=bool(config.get("layerwise_scalings", False)),
        has_relu=is_peft or bool(config.get("enable_relu_and_dropout", True)),
        has_bias=is_peft or bool(config.get("use_bias", True)),
        dropout=float(dropout),
    )


def _classifier_tensors(tensors: TensorHeaders, *, is_peft: bool) -> TensorHeaders:
    if not is_peft:
        return tensors
    return {
        name.removeprefix(_PEFT_PREFIX).replace("default.", "", 1): tensor
        for name, tensor in tensors.items()
        if name.startswith(_PEFT_PREFIX)
    }


def _tensor_problems(
    document: OrderingDocument, files: XLoraFiles, tensors: TensorHeaders, settings: _Settings
) -> Iterator[Problem]:
    def problem(code: str, message: str, severity: Severity = Severity.ERROR) -> Problem:
        return Problem(code, "order", message, severity, file=files.classifier_file)

    indices = sorted({int(match[2]) for name in tensors if (match := _INNER.fullmatch(name))})
    prefixes = [f"layers.{i}" for i in indices] if files.is_peft else [*(f"inner.{i}" for i in indices), "last"]
    if files.is_peft and len(indices) < settings.depth:
        lost = f"{len(indices)} of the {settings.depth} layers of the classifier are left"
        yield problem(
            "CLASSIFIER_LAYERS_LOST", f"{lost}: PEFT loses those with the number of an adapter when it saves."
        )
        return
    if len(prefixes) != settings.depth:
        message = f"The classifier has {len(prefixes)} layers ({some(prefixes)}), xlora_depth says {settings.depth}."
        yield problem("CLASSIFIER_TENSORS_WRONG", message)
        return
    wanted = {f"{prefix}.weight" for prefix in prefixes}
    wanted |= {f"{prefix}.bias" for prefix in prefixes} if settings.has_bias else set()
    if wrong := [f"`{shown(name)}` is missing" for name in sorted(wanted - tensors.keys())] + [
        f"`{shown(name)}` is not of this classifier" for name in sorted(tensors.keys() - wanted)
    ]:
        yield problem("CLASSIFIER_TENSORS_WRONG", f"The classifier's tensors do not fit its config: {some(wrong)}.")
    shapes = list(_shape_findings(tensors, prefixes, settings))
    if shapes:
        yield problem(
            "CLASSIFIER_SHAPE", f"The classifier's layers do not fit each other or its config: {some(shapes)}."
        )
    for message in _traps(indices, files, settings):
        yield problem("CLASSIFIER_INDEX_TRAP", message, Severity.WARNING)
    last = tensors.get(f"{prefixes[-1]}.weight")
    num_adapters, num_layers = len(document.order or ()), len(document.layers or ())
    if last is None or len(last.shape) != 2 or not num_adapters or (settings.layerwise and not num_layers):
        return
    if last.shape[0] != num_adapters * (num_layers if settings.layerwise else 1):
        asked = f"{num_adapters} adapters" + (f" x {num_layers} layers" if settings.layerwise else "")
        message = f"The classifier has {last.shape[0]} rows in `{prefixes[-1]}.weight`, the ordering asks for {asked}."
        yield problem("CLASSIFIER_ROWS", message)


def _shape_findings(tensors: TensorHeaders, prefixes: list[str], settings: _Settings) -> Iterator[str]:
    """Layer i reads what layer i - 1 writes; the rows of the last one are the ordering's matter."""
    columns = settings.hidden_size
    for prefix in prefixes:
        weight, bias = tensors.get(f"{prefix}.weight"), tensors.get(f"{prefix}.bias")
        if weight is not None:
            rows = weight.shape[0] if prefix == prefixes[-1] and weight.shape else settings.size
            if weight.shape != (rows, columns):
                yield f"`{prefix}.weight` has the shape {list(weight.shape)}, expected {[rows, columns]}"
            elif settings.has_bias and bias is not None and bias.shape != (rows,):
                yield f"`{prefix}.bias` has the shape {list(bias.shape)}, expected {[rows]}"
        columns = settings.size


def _traps(indices: list[int], files: XLoraFiles, settings: _Settings) -> Iterator[str]:
    """ReLU and dropout between the layers take numbers too; mistral.rs counts without them."""
    step = 1 + (1 + (settings.dropout > 0 or not files.is_peft) if settings.has_relu else 0)
    expected = list(range(0, len(indices) * step, step))
    if indices != expected:
        yield (
            f"The inner layers are numbered {indices}, but with this enable_relu_and_dropout they would be {expected}:"
            " the config may not be that of the training."
        )
    if not files.is_peft and settings.depth >= 3 and settings.has_relu:
        yield f"mistral.rs looks for inner.{list(range(len(indices)))} and cannot load inner.{indices}."
    if not files.is_peft and settings.depth >= 2 and settings.size != settings.hidden_size:
        yield (
            f"mistral.rs expects {settings.hidden_size} columns in `last.weight`, not xlora_size = {settings.size}, and"
            " cannot load this classifier."
        )
