"""Judges a document: every problem at once, each with a stable code."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass

from ordering_svc.domain.adapter_validation import adapter_problems
from ordering_svc.domain.architectures import QUANTIZED_LAYERS, ModelStructure
from ordering_svc.domain.checkpoint_validation import base_model_problems, checkpoint_problems
from ordering_svc.domain.classifier_validation import classifier_problems
from ordering_svc.domain.headers import AdapterHeaders, CheckpointHeader, FileFault
from ordering_svc.domain.layer_validation import layer_problems
from ordering_svc.domain.ordering import (
    DOCUMENT_KEYS,
    MAX_NAMES,
    MAX_PRELOAD_ADAPTERS,
    AdapterKind,
    OrderingDocument,
)
from ordering_svc.domain.ordering_json import ParsedFile, parse_file
from ordering_svc.domain.problems import Problem, Severity, in_document_order, shown

MAX_NAME_LENGTH = 256


@dataclass(frozen=True, slots=True)
class Expectations:
    """What a document is judged against, beside the rules that always hold."""

    kind: AdapterKind = AdapterKind.UNSPECIFIED
    structure: ModelStructure | None = None  # of the base model, where it is known
    quantized_architecture: str = ""  # a key of QUANTIZED_LAYERS, or nothing
    model_id: str = ""  # of the base model, if a hub id names it
    hidden_size: int | None = None  # of the base model, where it is known
    checkpoint: CheckpointHeader | FileFault | None = None  # of the base model, where there is one
    adapters: AdapterHeaders | None = None  # what is at the places of the adapters, if they are looked at

    @property
    def quantized_list(self) -> str:
        """Whose list of layers for quantized bases applies: the one asked for, or that of a quantized checkpoint."""
        is_quantized = isinstance(self.checkpoint, CheckpointHeader) and bool(self.checkpoint.quantization)
        if self.quantized_architecture or not is_quantized or self.structure is None:
            return self.quantized_architecture
        return self.structure.architecture if self.structure.architecture in QUANTIZED_LAYERS else ""


def validate_file(file: bytes, expectations: Expectations) -> tuple[Problem, ...]:
    """Every problem of an ordering file, in file order; never raises."""
    return validate_parsed(parse_file(file), expectations)


def validate_parsed(parsed: ParsedFile, expectations: Expectations) -> tuple[Problem, ...]:
    """Every problem of a file that has been read, in file order."""
    if not parsed.keys and parsed.problems:  # nothing could be read: what is missing would be noise
        return parsed.problems
    has_unread_rows = any(problem.is_error and problem.field.startswith("layers") for problem in parsed.problems)
    unread = {p.field for p in parsed.problems if p.is_error and p.code != "KEY_DUPLICATE"}
    judged = _document_problems(parsed.document, expectations, has_unread_rows=has_unread_rows)
    found = [*parsed.problems, *(problem for problem in judged if not _is_said(problem, unread))]
    return in_document_order(found, (*parsed.keys, *(key for key in DOCUMENT_KEYS if key not in parsed.keys)))


def _is_said(problem: Problem, unread: Set[str]) -> bool:
    """What could not be read has its problem already: a second one, about what stands for it, would mislead."""
    return problem.field in unread or problem.field.rpartition(".")[0] in unread


def validate_document(document: OrderingDocument, expectations: Expectations) -> tuple[Problem, ...]:
    """Every problem of a document, in the order of its keys."""
    return in_document_order(_document_problems(document, expectations, has_unread_rows=False), DOCUMENT_KEYS)


def _document_problems(
    document: OrderingDocument, expectations: Expectations, *, has_unread_rows: bool
) -> Iterator[Problem]:
    yield from _order_problems(document.order, expectations.kind)
    yield from layer_problems(
        document.layers,
        is_xlora=expectations.kind is AdapterKind.XLORA,
        structure=expectations.structure,
        quantized_architecture=expectations.quantized_list,
        has_unread_rows=has_unread_rows,
    )
    yield from _base_model_problems(document.base_model_id)
    yield from _preload_problems(document)
    yield from _collision_problems(document.order or ())
    yield from _header_problems(document, expectations)


def _header_problems(document: OrderingDocument, expectations: Expectations) -> Iterator[Problem]:
    """What only the files beside the document show."""
    is_xlora = expectations.kind is AdapterKind.XLORA
    checkpoint, headers = expectations.checkpoint, expectations.adapters
    yield from base_model_problems(document, expectations.model_id, "the model given is")
    if checkpoint is not None:
        yield from checkpoint_problems(document, checkpoint, is_xlora=is_xlora)
    if headers is None:
        return
    base = checkpoint if isinstance(checkpoint, CheckpointHeader) else None
    if headers.xlora is not None and is_xlora:
        yield from classifier_problems(document, headers.xlora, expectations.hidden_size)
    elif headers.xlora is not None:
        message = f"The ordering is of kind LoRA, but there is {headers.xlora.config_file} beside its adapters."
        yield Problem("XLORA_FILES_UNUSED", "order", message, Severity.WARNING, file=headers.xlora.config_file)
    yield from adapter_problems(document, headers, base, is_xlora=is_xlora)


def _order_problems(order: tuple[str, ...] | None, kind: AdapterKind) -> Iterator[Problem]:
    if kind is AdapterKind.XLORA and order is None:
        message = "order is missing: an X-LoRA needs its adapter names in the order of training."
        yield Problem("ORDER_MISSING", "order", message)
    if kind is AdapterKind.XLORA and order == ():
        yield Problem("ORDER_EMPTY", "order", "order is empty: an X-LoRA needs at least one adapter name.")
    if order is not None and len(order) > MAX_NAMES:
        yield Problem("TOO_MANY_ENTRIES", "order", f"order has {len(order)} names, the limit is {MAX_NAMES}.")
    first_place: dict[str, int] = {}
    for index, name in enumerate(order or ()):
        field = f"order[{index}]"
        if name in first_place:
            message = f"The adapter `{shown(name)}` is already order[{first_place[name]}]: each name may be there once."
            yield Problem("ORDER_DUPLICATE", field, message, entry=index)
        first_place.setdefault(name, index)
        yield from _name_problems(name, field, index)


def _name_problems(name: str, field: str, entry: int) -> Iterator[Problem]:
    if not name.strip():
        yield Problem("NAME_EMPTY", field, f"{field} is empty.", entry=entry)
    elif len(name) > MAX_NAME_LENGTH:
        message = f"{field} has {len(name)} characters, the limit is {MAX_NAME_LENGTH}: `{shown(name)}`."
        yield Problem("NAME_TOO_LONG", field, message, entry=entry)
    elif not name.isprintable() or name.startswith("/") or not {".", ".."}.isdisjoint(name.split("/")):
        message = f"{field} is `{shown(name)}`, which cannot be a folder."
        yield Problem("NAME_INVALID", field, message, entry=entry)


def _base_model_problems(base_model_id: str | None) -> Iterator[Problem]:
    field = "base_model_id"
    if base_model_id is None:
        yield Problem("BASE_MODEL_ID_MISSING", field, "base_model_id is missing.")
    elif not base_model_id.strip():
        yield Problem("BASE_MODEL_ID_EMPTY", field, "base_model_id is empty.")


def _preload_problems(document: OrderingDocument) -> Iterator[Problem]:
    adapters = document.preload_adapters or ()
    if len(adapters) > MAX_PRELOAD_ADAPTERS:
        message = f"preload_adapters has {len(adapters)} entries, the limit is {MAX_PRELOAD_ADAPTERS}."
        yield Problem("TOO_MANY_ENTRIES", "preload_adapters", message)
    first_place: dict[str, int] = {}
    for index, adapter in enumerate(adapters):
        field = f"preload_adapters[{index}]"
        if adapter.name in first_place:
            message = f"The adapter `{shown(adapter.name)}` is preload_adapters[{first_place[adapter.name]}] too."
            yield Problem("PRELOAD_DUPLICATE", f"{field}.name", message, entry=index)
        first_place.setdefault(adapter.name, index)
        yield from _name_problems(adapter.name, f"{field}.name", index)
        if not adapter.adapter_model_id.strip():
            message = f"The adapter `{shown(adapter.name)}` has an empty adapter_model_id."
            yield Problem("PRELOAD_PLACE_EMPTY", f"{field}.adapter_model_id", message, entry=index)


def _collision_problems(order: Sequence[str]) -> Iterator[Problem]:
    """Names that begin another one: the reference system finds `adapter_1` in the folder of `adapter_10` too."""
    names = sorted(set(order))
    for shorter, longer in itertools.pairwise(names):  # sorted, so a longer one follows at once
        if shorter.strip() and longer.startswith(shorter):
            index = order.index(shorter)
            message = (
                f"The name `{shown(shorter)}` begins the name `{shown(longer)}`: mistral.rs looks"
                " for adapter files by a part of their path and would mix the two up."
            )
            yield Problem("NAME_PREFIX_COLLISION", f"order[{index}]", message, Severity.WARNING, index)
