"""Judges the `layers` of a document: paths, rows, and whether they fit the model."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Sequence

from ordering_svc.domain.architectures import LAYER_PREFIX, OUTPUT_HEAD, QUANTIZED_LAYERS, ModelStructure
from ordering_svc.domain.ordering import MAX_LAYERS, LayerRow
from ordering_svc.domain.ordering_json import layer_place
from ordering_svc.domain.problems import Problem, Severity, shown

PEFT_PREFIX = "base_model.model."
MAX_PATH_LENGTH = 512
SHOWN_ROWS = 8
_IN_A_LAYER = re.compile(re.escape(LAYER_PREFIX) + r"(0|[1-9][0-9]*)\.(.+)", re.ASCII)


def layer_problems(
    layers: tuple[LayerRow, ...] | None,
    *,
    is_xlora: bool,
    structure: ModelStructure | None,
    quantized_architecture: str,
    has_unread_rows: bool,
) -> Iterator[Problem]:
    """Every problem of `layers`, whole-list ones first.

    `has_unread_rows` says that some entries could not be read, so that rows which seem to be missing may be theirs.
    """
    if layers is None or not (layers or has_unread_rows):
        yield _missing(is_given=layers is not None, is_xlora=is_xlora)
        return
    if len(layers) > MAX_LAYERS:
        yield Problem("TOO_MANY_ENTRIES", "layers", f"layers has {len(layers)} entries, the limit is {MAX_LAYERS}.")
    yield from _row_problems(layers, has_unread_rows=has_unread_rows)
    if structure is not None:
        yield from _order_problems(layers, structure)
    seen: set[str] = set()
    modules = frozenset(structure.layer_modules) if structure is not None else frozenset()
    other_paths = (
        frozenset(p for p in structure.module_paths() if not p.startswith(LAYER_PREFIX)) if structure else None
    )
    for entry, layer in enumerate(layers):
        if layer.path in seen:  # from a message; a file's duplicates are found while it is read
            message = f"The layer `{shown(layer.path)}` is there more than once."
            yield Problem("KEY_DUPLICATE", layer_place(layer.path), message, entry=entry)
        seen.add(layer.path)
        yield from _path_problems(layer.path, entry)
        if is_xlora and layer.path.endswith(OUTPUT_HEAD):
            message = (
                f"The X-LoRA adapts the layer `{shown(layer.path)}`: mistral.rs refuses that"
                ' ("Got an adapter `lm_head` layer, this is unsupported with X-LoRA.").'
            )
            yield Problem("XLORA_LM_HEAD", layer_place(layer.path), message, Severity.WARNING, entry)
        if quantized_architecture:
            yield from _support_problems(layer.path, quantized_architecture, entry)
        if structure is not None and other_paths is not None:
            yield from _fit_problems(layer.path, structure, modules, other_paths, entry)


def _missing(*, is_given: bool, is_xlora: bool) -> Problem:
    state = "empty" if is_given else "missing"
    if is_xlora:
        message = f"layers is {state}: without it every layer would use row 0 of the X-LoRA classifier."
        return Problem("LAYERS_MISSING", "layers", message)
    message = f"layers is {state}: that is fine for LoRA, but no X-LoRA can use this ordering."
    return Problem("LAYERS_MISSING", "layers", message, Severity.WARNING)


def _row_problems(layers: Sequence[LayerRow], *, has_unread_rows: bool) -> Iterator[Problem]:
    """The rows must be 0..n-1, each once."""
    owners: dict[int, str] = {}
    shared: list[str] = []
    outside: list[str] = []
    count = len(layers)
    for layer in layers:
        if layer.row in owners:
            shared.append(f"{layer.row} (`{shown(owners[layer.row])}` and `{shown(layer.path)}`)")
        owners.setdefault(layer.row, layer.path)
        if layer.row < 0 or (layer.row >= count and not has_unread_rows):
            outside.append(f"{layer.row} (`{shown(layer.path)}`)")
    missing = [] if has_unread_rows else [str(row) for row in range(count) if row not in owners]
    faults = (("missing", missing), ("used twice", shared), ("out of range", outside))
    said = [f"{name}: {_some(rows)}" for name, rows in faults if rows]
    if said:
        message = f"The rows of {count} layers must be 0 to {count - 1}, each once; {'; '.join(said)}."
        yield Problem("ROWS_NOT_CONTIGUOUS", "layers", message)


def _some(rows: Sequence[str]) -> str:
    more = f" and {len(rows) - SHOWN_ROWS} more" if len(rows) > SHOWN_ROWS else ""
    return ", ".join(rows[:SHOWN_ROWS]) + more


def _path_problems(path: str, entry: int) -> Iterator[Problem]:
    if not path.strip():
        yield Problem("LAYER_PATH_EMPTY", layer_place(path), "A layer has an empty path.", entry=entry)
    elif len(path) > MAX_PATH_LENGTH:
        message = f"The layer path `{shown(path)}` has {len(path)} characters, the limit is {MAX_PATH_LENGTH}."
        yield Problem("LAYER_PATH_TOO_LONG", layer_place(path), message, entry=entry)
    elif path.startswith(PEFT_PREFIX) or path.endswith("."):
        message = f"The layer path `{shown(path)}` must have neither the prefix `{PEFT_PREFIX}` nor a dot at its end."
        yield Problem("LAYER_PATH_MALFORMED", layer_place(path), message, entry=entry)


def _support_problems(path: str, quantized_architecture: str, entry: int) -> Iterator[Problem]:
    supported = QUANTIZED_LAYERS[quantized_architecture]
    if not path.endswith(supported):
        message = (  # the reference system's own wording, which users know
            f"Got a layer name `{shown(path)}` in the ordering, expected it to end with one of"
            f" {json.dumps(list(supported))}"
        )
        yield Problem("LAYER_NOT_SUPPORTED", layer_place(path), message, entry=entry)


def _fit_problems(
    path: str, structure: ModelStructure, modules: frozenset[str], other_paths: frozenset[str], entry: int
) -> Iterator[Problem]:
    if path in other_paths:
        return
    match = _IN_A_LAYER.fullmatch(path)
    if match is None or match[2] not in modules:
        message = (
            f"The layer `{shown(path)}` is no module of a {structure.architecture} model; its layers have"
            f" {', '.join(structure.layer_modules)}."
        )
        yield Problem("LAYER_UNKNOWN", layer_place(path), message, entry=entry)
    elif len(match[1]) > 9 or int(match[1]) >= structure.num_layers:
        message = (
            f"The layer `{shown(path)}` has index `{shown(match[1])}`, but the model has {structure.num_layers} layers:"
            f" 0 to {structure.num_layers - 1}."
        )
        yield Problem("LAYER_INDEX_BEYOND_DEPTH", layer_place(path), message, entry=entry)


def _order_problems(layers: Sequence[LayerRow], structure: ModelStructure) -> Iterator[Problem]:
    """Rows that are valid but not in PEFT's order: right only if the classifier was trained with another order."""
    places = {path: place for place, path in enumerate(structure.module_paths())}
    known = sorted((layer for layer in layers if layer.path in places), key=lambda layer: layer.row)
    for earlier, later in itertools.pairwise(known):
        if places[earlier.path] > places[later.path]:
            message = (
                f"Row {earlier.row} (`{shown(earlier.path)}`) comes before row {later.row} (`{shown(later.path)}`), but"
                f" PEFT visits them the other way round in a {structure.architecture} model: an X-LoRA trained with"
                " PEFT would use the scalings of the wrong layers."
            )
            yield Problem("ROWS_NOT_IN_PEFT_ORDER", "layers", message, Severity.WARNING)
            return
