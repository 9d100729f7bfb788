"""Makes the document of an ordering from a model's structure, as the reference system's `create_ordering.py` does."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ordering_svc.domain.architectures import EMBEDDINGS, OUTPUT_HEAD, ModelStructure
from ordering_svc.domain.ordering import MAX_LAYERS, LayerRow, OrderingDocument
from ordering_svc.errors import TargetModulesUnmatched, TooManyLayers


def generate(
    structure: ModelStructure, target_modules: Sequence[str], adapter_names: Iterable[str], base_model_id: str
) -> OrderingDocument:
    """The document for a model whose `target_modules` carry adapters: rows are counted in PEFT's order from 0.

    Raises:
        TargetModulesUnmatched: a target module matches no module of the model.
        TooManyLayers: more modules match than an ordering can name.
    """
    paths = tuple(structure.module_paths())
    unmatched = tuple(
        (index, target)
        for index, target in enumerate(target_modules)
        if not any(is_target(path, [target]) for path in paths)
    )
    if unmatched:
        raise TargetModulesUnmatched(unmatched, structure.architecture, available_targets(structure))
    chosen = [path for path in paths if is_target(path, target_modules)]
    if len(chosen) > MAX_LAYERS:
        raise TooManyLayers(len(chosen), MAX_LAYERS)
    layers = tuple(LayerRow(path, row) for row, path in enumerate(chosen))
    return OrderingDocument(order=tuple(adapter_names), layers=layers, base_model_id=base_model_id)


def is_target(path: str, target_modules: Iterable[str]) -> bool:
    """PEFT's rule for a list of target modules: the whole path, or what follows a dot at its end."""
    return any(path == target or path.endswith(f".{target}") for target in target_modules)


def available_targets(structure: ModelStructure) -> tuple[str, ...]:
    """The short names that match a module of the model."""
    modules = (*structure.layer_modules, EMBEDDINGS, OUTPUT_HEAD)
    return tuple(dict.fromkeys(module.rpartition(".")[2] for module in modules))
