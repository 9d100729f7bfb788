"""Applying an ordering: load what it names, and make it the active default, all or nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from inference_svc.adapters.base_model import AdapterLimits, BaseModelShape, is_comparable, summary
from inference_svc.adapters.loading import Loaded, is_lora, is_xlora, load_from
from inference_svc.adapters.registry import AdapterRegistry
from inference_svc.adapters.resident import ActiveSet, LoadItem, ResidentAdapter
from inference_svc.adapters.selection import (
    AdapterKind,
    BaseSelection,
    LoraSelection,
    Selection,
    XLoraSelection,
)
from inference_svc.adapters.xlora import LoadedXLora, load_xlora, sub_folder
from inference_svc.errors import OrderingUnfit

# Below it, quantization may distort the hidden states that a classifier sees so much that it chooses otherwise than it
# was trained to. Source: the adapter documentation of mistral.rs, which advises against 4 bits.
XLORA_BITS = 5.0


@dataclass(frozen=True, slots=True)
class FetchedOrdering:
    """One revision of an ordering, as the ordering service has it."""

    name: str  # `orderings/{id}`
    revision_id: str
    kind: AdapterKind | None  # None: the adapter files decide
    order: tuple[str, ...] | None  # None: the file has no such key
    layers: Mapping[str, int] | None
    base_model_id: str
    preload: tuple[tuple[str, str], ...] = ()  # (name, adapter_model_id)
    adapter_model_id: str = ""  # empty: not said

    @property
    def revision_name(self) -> str:
        """`orderings/{id}@{revision}`."""
        return f"{self.name}@{self.revision_id}"

    @property
    def ordering_id(self) -> str:
        """The last part of the name."""
        return self.name.rsplit("/", 1)[-1]


@dataclass(frozen=True, slots=True)
class AppliedOrdering:
    """What applying an ordering has changed."""

    ordering: str  # `orderings/{id}@{revision}`
    adapters: tuple[ResidentAdapter, ...]  # what it brought
    active: ActiveSet
    warnings: tuple[str, ...] = ()  # a sentence each


@dataclass(frozen=True, slots=True)
class OrderingApplier:
    """Applies orderings to a registry.

    `locate` turns a folder or a hub id into a local folder; it is told which sub-folders of it will be read.
    """

    registry: AdapterRegistry
    locate: Callable[[str, Sequence[str]], Path]
    base: BaseModelShape
    limits: AdapterLimits

    def apply(self, fetched: FetchedOrdering, adapter_model_id: str | None, activate: bool) -> AppliedOrdering:
        """Load what the ordering names; with `activate`, what `order` names becomes the active default.

        Reads files, so it may take long; the registry changes only at the end, in one step.

        Raises:
            OrderingUnfit: it does not fit the base model or its adapters, or does not say where they are.
            InferenceError: whatever `locate`, `load_lora`, `load_xlora` and `AdapterRegistry.load_all` raise.
        """
        self._check(fetched)
        place_id = adapter_model_id or fetched.adapter_model_id
        preloaded = {name for name, _ in fetched.preload}
        order = fetched.order or ()
        rest = [name for name in order if name not in preloaded]
        inside = order if fetched.kind is AdapterKind.XLORA else rest
        place = self.locate(place_id, inside) if place_id and (inside or fetched.kind is not AdapterKind.LORA) else None
        mixture = fetched.kind is AdapterKind.XLORA or (fetched.kind is None and place is not None and is_xlora(place))
        items = [LoadItem(name, self._load_preload(name, source), source) for name, source in fetched.preload]
        selection: Selection
        if mixture:
            if place is None:
                raise OrderingUnfit(
                    f"{fetched.revision_name} is an X-LoRA ordering without a place for its adapters: "
                    "set `adapter_model_id`"
                )
            if any(name == fetched.ordering_id for name, _ in fetched.preload):
                raise OrderingUnfit(
                    f"{fetched.revision_name} preloads an adapter `{fetched.ordering_id}`, which is the name of its "
                    "own X-LoRA: rename one of them",
                    adapter=fetched.ordering_id,
                )
            items.append(LoadItem(fetched.ordering_id, self._load_xlora(fetched, place), place_id))
            selection = XLoraSelection(fetched.ordering_id)
        else:
            for name in rest:
                folder, source = self._folder_of(name, order, place, place_id, fetched)
                items.append(LoadItem(name, load_from(folder, self.base, self.limits), source))
            selection = LoraSelection(dict.fromkeys(order, 1.0)) if order else BaseSelection()
        adapters, active = self.registry.load_all(
            items, ordering=fetched.revision_name, activate=selection if activate else None
        )
        return AppliedOrdering(fetched.revision_name, adapters, active, self._warnings(fetched) if mixture else ())

    def _check(self, fetched: FetchedOrdering) -> None:
        """Everything that can be said without reading adapter files, all of it at once."""
        problems = []
        if not fetched.base_model_id:
            problems.append("`base_model_id` is missing")
        elif self.base.base_model_id and fetched.base_model_id != self.base.base_model_id:
            problems.append(f"it is for base model {fetched.base_model_id!r}, loaded is {self.base.base_model_id!r}")
        problems += [f"`order` names `{name}` more than once" for name in _doubles(fetched.order or ())]
        preload = [name for name, _ in fetched.preload]
        problems += [f"`preload_adapters` names `{name}` more than once" for name in _doubles(preload)]
        problems += self.base.layer_problems(fetched.layers or {})
        if problems:
            raise OrderingUnfit(
                f"{fetched.revision_name} cannot be applied: {summary(problems)}",
                ordering=fetched.revision_name,
                problems=str(len(problems)),
            )

    def _warnings(self, fetched: FetchedOrdering) -> tuple[str, ...]:
        """What may not work with an X-LoRA as it was trained to."""
        bits = self.base.bits_per_weight
        if bits is None or bits >= XLORA_BITS:
            return ()
        return (
            f"{fetched.revision_name} is an X-LoRA, and the base model has {bits:.1f} bits a weight: with fewer than "
            f"{XLORA_BITS:g} its classifier may weigh the adapters otherwise than it was trained to; "
            "`loramux distortion` measures by how much",
        )

    def _load_xlora(self, fetched: FetchedOrdering, place: Path) -> LoadedXLora:
        loaded = load_xlora(place, fetched.order or (), fetched.layers or {}, self.base, self.limits)
        trained_for = loaded.config.base_model_id
        if is_comparable(trained_for) and trained_for != fetched.base_model_id:
            raise OrderingUnfit(
                f"{fetched.revision_name} is for base model {fetched.base_model_id!r}, its X-LoRA was trained for "
                f"{trained_for!r}",
                ordering=fetched.revision_name,
            )
        return loaded

    def _load_preload(self, name: str, source: str) -> Loaded:
        """`source` holds the adapter's files, or a sub-folder of its name."""
        folder = self.locate(source, [name])
        is_adapter = is_lora(folder) or is_xlora(folder)
        return load_from(folder if is_adapter else sub_folder(folder, name), self.base, self.limits)

    def _folder_of(
        self, name: str, order: Sequence[str], place: Path | None, place_id: str, fetched: FetchedOrdering
    ) -> tuple[Path, str]:
        """Where a LoRA of `order` is, and how messages and listings call that place."""
        if place is None:
            raise OrderingUnfit(
                f"{fetched.revision_name} names adapter `{name}`, but neither `preload_adapters` nor "
                "`adapter_model_id` says where it is",
                adapter=name,
            )
        if len(order) == 1 and is_lora(place) and not (place / name).is_dir():
            return place, place_id
        return sub_folder(place, name), f"{place_id}/{name}"


def _doubles(names: Sequence[str]) -> list[str]:
    return sorted(name for name, count in Counter(names).items() if count > 1)
