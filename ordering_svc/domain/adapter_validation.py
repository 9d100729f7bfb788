"""Judges the adapters that a document names: their configs, their tensors' shapes, and which layers they cover."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from ordering_svc.domain.adapter_tensors import check_ranks, check_shapes, layers_of, some, special_features
from ordering_svc.domain.checkpoint_validation import base_model_problems
from ordering_svc.domain.headers import (
    AdapterFiles,
    AdapterHeaders,
    CheckpointHeader,
    FaultKind,
    FileFault,
    NamedAdapter,
)
from ordering_svc.domain.ordering import OrderingDocument
from ordering_svc.domain.problems import Problem, Severity, shown

FAULT_CODES = {
    FaultKind.MISSING: "ADAPTER_FILE_MISSING",
    FaultKind.MALFORMED: "ADAPTER_FILE_MALFORMED",
    FaultKind.OUTSIDE: "ADAPTER_FILE_OUTSIDE",
    FaultKind.UNKNOWN_PLACE: "ADAPTER_NOT_CHECKED",
}
CONFIG_NAME, TENSORS_NAME = "adapter_config.json", "adapter_model.safetensors"
_MEANINGS = {
    "ADAPTER_TENSOR_UNKNOWN": "tensors that are not LoRA",
    "ADAPTER_TENSOR_DTYPE": "tensors that are not floating point",
    "ADAPTER_TENSOR_SHAPE": "tensors of a wrong shape",
    "ADAPTER_TENSOR_UNPAIRED": "layers without one of their two tensors",
    "ADAPTER_RANK_MISMATCH": "layers of another rank than its config says",
    "ADAPTER_SHAPE_MISMATCH": "layers of another size than the base model's (out, in)",
    "ADAPTER_LAYER_UNKNOWN": "layers that the base model does not have",
}


@dataclass(slots=True)
class _Seen:
    """What the adapters judged so far have in common."""

    targets: dict[tuple[str, ...], str] = field(default_factory=dict)  # target modules -> the first adapter with them
    covered: dict[str, int] = field(default_factory=dict)  # layer -> how many adapters of `order` change it
    num_adapters: int = 0  # of `order`, whose layers are known
    is_complete: bool = True  # all adapters of `order` could be read


def fault_problem(fault: FileFault, where: str, entry: int = 0) -> Problem:
    """A file that could not be read, as a problem of the place that names it."""
    severity = Severity.WARNING if fault.kind is FaultKind.UNKNOWN_PLACE else Severity.ERROR
    return Problem(FAULT_CODES[fault.kind], where, fault.message, severity, entry, fault.file)


def adapter_problems(
    document: OrderingDocument, headers: AdapterHeaders, checkpoint: CheckpointHeader | None, *, is_xlora: bool
) -> Iterator[Problem]:
    """Every problem of the adapters, one for each adapter and code."""
    seen = _Seen()
    for adapter in headers.adapters:
        if isinstance(adapter.files, FileFault):
            seen.is_complete = seen.is_complete and not adapter.field.startswith("order")
            yield fault_problem(adapter.files, adapter.field, adapter.entry)
        else:
            yield from _config_problems(document, adapter, adapter.files, seen)
            yield from _tensor_problems(document, adapter, adapter.files, checkpoint, seen, is_xlora=is_xlora)
    yield from _coverage_problems(document, seen, is_xlora=is_xlora)


def _config_problems(
    document: OrderingDocument, adapter: NamedAdapter, files: AdapterFiles, seen: _Seen
) -> Iterator[Problem]:
    name, file = shown(adapter.name), f"{files.folder}/{CONFIG_NAME}"

    def problem(code: str, message: str, severity: Severity = Severity.ERROR) -> Problem:
        return Problem(code, adapter.field, message, severity, adapter.entry, file)

    stray = [
        f"`{shown(other)}`" for other in files.file_names if other != CONFIG_NAME and not other.endswith(".safetensors")
    ]
    if stray:
        message = f"The folder of adapter `{name}` also holds {some(stray)}, which mistral.rs would read as configs."
        yield problem("ADAPTER_STRAY_FILE", message, Severity.WARNING)
    if isinstance(files.config, FileFault):
        yield fault_problem(files.config, adapter.field, adapter.entry)
        return
    config = files.config
    peft_type, model_id = config.get("peft_type", "LORA"), config.get("base_model_name_or_path")
    if peft_type != "LORA":
        yield problem(
            "ADAPTER_TYPE_WRONG", f"The adapter `{name}` has the peft_type `{shown(peft_type)}`, expected LORA."
        )
    for key, expected, is_right in (
        ("r", "a whole number from 1", _is_rank(config.get("r", 8))),
        ("lora_alpha", "a number", _is_number(config.get("lora_alpha", 8))),
        ("rank_pattern", "an object", isinstance(config.get("rank_pattern") or {}, dict)),
        ("alpha_pattern", "an object", isinstance(config.get("alpha_pattern") or {}, dict)),
        ("base_model_name_or_path", "a string", isinstance(model_id, str | None)),
    ):
        if not is_right:
            message = f"The adapter `{name}` has {key} = `{shown(config[key])}`, expected {expected}."
            yield problem("ADAPTER_CONFIG_INVALID", message)
    if isinstance(model_id, str):
        yield from base_model_problems(document, model_id, f"the adapter `{name}` was trained on", file)
    if special := list(special_features(config)):
        message = (
            f"The adapter `{name}` is more than plain LoRA, which mistral.rs ignores without a word: {some(special)}."
        )
        yield problem("ADAPTER_BEYOND_PLAIN_LORA", message, Severity.WARNING)
    targets = config.get("target_modules")
    if not isinstance(targets, list) or not all(isinstance(target, str) for target in targets):
        message = (
            f"The target_modules of adapter `{name}` are `{shown(targets)}`: mistral.rs reads a list of names only."
        )
        yield problem("ADAPTER_TARGETS_NOT_A_LIST", message, Severity.WARNING)
        return
    first = seen.targets.setdefault(tuple(sorted(set(targets))), adapter.name)
    other = next(iter(seen.targets.values()))
    if first == adapter.name and other != adapter.name:
        message = (
            f"The adapters `{shown(other)}` and `{name}` have different target modules: mistral.rs refuses them"
            ' ("Expected all target modules to be the same.").'
        )
        yield problem("ADAPTER_TARGETS_DIFFER", message, Severity.WARNING)


def _tensor_problems(
    document: OrderingDocument,
    adapter: NamedAdapter,
    files: AdapterFiles,
    checkpoint: CheckpointHeader | None,
    seen: _Seen,
    *,
    is_xlora: bool,
) -> Iterator[Problem]:
    in_order = adapter.field.startswith("order")
    if isinstance(files.tensors, FileFault):
        seen.is_complete = seen.is_complete and not in_order
        yield fault_problem(files.tensors, adapter.field, adapter.entry)
        return
    file = f"{files.folder}/{TENSORS_NAME}"
    layers = layers_of(files.tensors)
    if not isinstance(files.config, FileFault):
        check_ranks(layers, files.config)
    if checkpoint is not None:
        check_shapes(layers, checkpoint.shapes)
    for code, findings in layers.findings.items():
        message = f"The adapter `{shown(adapter.name)}` has {_MEANINGS[code]}: {some(findings)}."
        yield Problem(code, adapter.field, message, entry=adapter.entry, file=file)
    if in_order:
        seen.num_adapters += 1
        for path in layers.shapes:
            seen.covered[path] = seen.covered.get(path, 0) + 1
    if document.layers:
        named = {layer.path for layer in document.layers}
        if unnamed := [f"`{shown(path)}`" for path in layers.shapes if path not in named]:
            message = f"The adapter `{shown(adapter.name)}` changes layers that are not in layers: {some(unnamed)}."
            severity = Severity.ERROR if is_xlora else Severity.WARNING
            yield Problem("ADAPTER_LAYER_NOT_IN_ORDERING", adapter.field, message, severity, adapter.entry, file)


def _coverage_problems(document: OrderingDocument, seen: _Seen, *, is_xlora: bool) -> Iterator[Problem]:
    """Layers without an adapter; only if every adapter could be read, for the missing ones may cover them."""
    if not seen.num_adapters or not seen.is_complete:
        return
    layers = [layer.path for layer in document.layers or ()]
    if bare := [f"`{shown(path)}`" for path in layers if path not in seen.covered]:
        severity = Severity.ERROR if is_xlora else Severity.WARNING
        message = f"No adapter of order changes these layers: {some(bare)}."
        yield Problem("LAYER_NOT_IN_ANY_ADAPTER", "layers", message, severity)
    if partly := [f"`{shown(path)}`" for path in layers if 0 < seen.covered.get(path, 0) < seen.num_adapters]:
        message = f"Some adapters of order do not change these layers: {some(partly)}."
        yield Problem("LAYER_NOT_IN_EVERY_ADAPTER", "layers", message, Severity.WARNING)


def _is_rank(value: object) -> bool:
    return type(value) is int and value >= 1


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
