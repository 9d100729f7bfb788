"""Makes the document of an ordering from a model's structure, as the reference system's `create_ordering.py` does."""

from __future__ import annotations

from collections.abc import Iterable

from ordering_svc.domain.architectures import ModelStructure
from ordering_svc.domain.ordering import MAX_LAYERS, LayerRow, OrderingDocument
from ordering_svc.domain.path_patterns import MatchesPaths
from ordering_svc.domain.target_selection import TargetSelection, select_modules
from ordering_svc.errors import TooManyLayers


def generate(
    structure: ModelStructure,
    selection: TargetSelection,
    adapter_names: Iterable[str],
    base_model_id: str,
    match: MatchesPaths,
) -> OrderingDocument:
    """The document for a model of which the selected modules carry adapters: rows count in PEFT's order from 0.

    Raises:
        InvalidRequest: nothing fit is selected; its subclasses, and when, as for `select_modules`.
        TooManyLayers: more modules are selected than an ordering can name.
    """
    chosen = select_modules(structure, selection, match)
    if len(chosen) > MAX_LAYERS:
        raise TooManyLayers(len(chosen), MAX_LAYERS)
    layers = tuple(LayerRow(path, row) for row, path in enumerate(chosen))
    return OrderingDocument(order=tuple(adapter_names), layers=layers, base_model_id=base_model_id)
