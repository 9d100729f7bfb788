"""Adapters for a measurement: an ordering file, or a folder that needs none, applied as the service would."""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from inference_svc.adapters.base_model import AdapterLimits, BaseModelShape
from inference_svc.adapters.loading import load_from
from inference_svc.adapters.needed_files import needed_files
from inference_svc.adapters.ordering import FetchedOrdering, OrderingApplier
from inference_svc.adapters.registry import AdapterRegistry
from inference_svc.adapters.selection import AdapterKind, LoraSelection, Mixture, XLoraSelection
from inference_svc.distortion.errors import DistortionError
from inference_svc.weights.hub_reference import parse_hub_reference
from inference_svc.weights.json_object import read_json_object
from inference_svc.weights.locate import downloaded_adapter


@dataclass(frozen=True, slots=True)
class ChosenAdapters:
    """What is to be applied."""

    ordering: Path | None  # an ordering file; None: the folder says it all, as of a LoRA or of PEFT's X-LoRA
    source: str | None  # the folder or hub id of the adapters; None: `preload_adapters` of the ordering says it

    @property
    def name(self) -> str:
        """What reports call them."""
        return str(self.ordering or self.source)

    def base_model_id(self) -> str | None:
        """What the ordering calls its base model; None without one.

        Raises:
            DistortionError, WeightsError: as for `mixture`.
        """
        return None if self.ordering is None else _read(self.ordering, "").base_model_id

    def mixture(self, base: BaseModelShape) -> Mixture:
        """What the engine runs with once they are applied to a model.

        Raises:
            DistortionError: the ordering file is not one, or there is no such folder.
            InferenceError, WeightsError: they do not fit the model, are broken, or cannot be had.
        """
        limits = AdapterLimits()
        registry = AdapterRegistry(base, limits)

        def locate(source: str, folders: Sequence[str]) -> Path:
            return _located(source, folders, self.ordering)

        if self.ordering is not None:
            fetched = _read(self.ordering, self.source or "")
            applied = OrderingApplier(registry, locate, base, limits).apply(fetched, None, activate=True)
            return registry.lease(applied.active.selection).mixture
        assert self.source is not None
        loaded = load_from(locate(self.source, ()), base, limits)
        registry.load("adapter", loaded, source=self.source)
        is_lora = loaded.kind is AdapterKind.LORA
        return registry.lease(LoraSelection({"adapter": 1.0}) if is_lora else XLoraSelection("adapter")).mixture


def _located(source: str, folders: Sequence[str], ordering: Path | None) -> Path:
    """Whoever starts a measurement may read what they name; beside the ordering is where adapters usually lie."""
    places = [Path(source).expanduser()] + ([ordering.resolve().parent / source] if ordering is not None else [])
    path = next((place for place in places if place.is_dir()), None)
    if path is not None:
        return path
    hub = parse_hub_reference(source)
    if hub is None or hub.file is not None:
        looked = " or ".join(map(str, places))
        raise DistortionError(f"adapters {source!r}: there is no folder {looked}, and it is not a hub id like org/name")
    return downloaded_adapter(hub, lambda listing: needed_files(listing, folders), AdapterLimits().max_bytes)


def _read(path: Path, source: str) -> FetchedOrdering:
    """An ordering file, as if the ordering service had it."""
    values = read_json_object(path)
    order, layers = values.get("order"), values.get("layers")
    base_model_id, preload = values.get("base_model_id"), values.get("preload_adapters") or []
    if order is not None and not (isinstance(order, list) and all(isinstance(name, str) for name in order)):
        raise _wrong(path, "order", order, "a list of names")
    if layers is not None and not (isinstance(layers, dict) and all(type(row) is int for row in layers.values())):
        raise _wrong(path, "layers", layers, "rows by module path")
    if not isinstance(base_model_id, str):
        raise _wrong(path, "base_model_id", base_model_id, "a model id")
    if not isinstance(preload, list) or not all(map(_is_preload, preload)):
        raise _wrong(path, "preload_adapters", preload, "a list of objects with name and adapter_model_id")
    return FetchedOrdering(
        name=f"orderings/{path.stem}",
        revision_id="file",
        kind=None,
        order=None if order is None else tuple(order),
        layers=layers,
        base_model_id=base_model_id,
        preload=tuple((each["name"], each["adapter_model_id"]) for each in preload),
        adapter_model_id=source,
    )


def _wrong(path: Path, key: str, value: object, expected: str) -> DistortionError:
    return DistortionError(f"ordering {path}: `{key}` is {reprlib.repr(value)}, expected {expected}")


def _is_preload(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(value.get(key), str) for key in ("name", "adapter_model_id"))
