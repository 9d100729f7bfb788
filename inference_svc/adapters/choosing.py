"""From a selection by names to versions and the mixture that the engine applies; pure functions over a snapshot."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping

from inference_svc.adapters.lora import LoadedLora
from inference_svc.adapters.resident import Version
from inference_svc.adapters.selection import (
    AdapterKind,
    AppliedAdapter,
    BaseSelection,
    LoraSelection,
    Mixture,
    WeightedBank,
    XLoraMixture,
    XLoraSelection,
)
from inference_svc.adapters.xlora import LoadedXLora
from inference_svc.errors import AdapterNotFound, AdapterWrongKind, InvalidRequest

ResolvedSelection = BaseSelection | LoraSelection | XLoraSelection


def lora_selection(pairs: Iterable[tuple[str, float]], field: str = "adapters") -> LoraSelection:
    """A weighted sum from (name, weight) pairs as a request lists them.

    Raises:
        InvalidRequest: no pair, a name twice, or a weight that is NaN or infinite; names the field.
    """
    weights: dict[str, float] = {}
    for index, (name, weight) in enumerate(pairs):
        if name in weights:
            raise InvalidRequest(
                f"{field}.loras.adapters[{index}].name", f"adapter `{name}` is named twice: give it one weight"
            )
        weights[name] = weight
    selection = LoraSelection(weights)
    check_weights(selection, field)
    return selection


def check_weights(selection: LoraSelection, field: str) -> None:
    """Refuse an empty sum and weights that are no numbers.

    Raises:
        InvalidRequest: naming the field.
    """
    if not selection.weights:
        raise InvalidRequest(f"{field}.loras.adapters", "a sum of no adapters: select the base model instead")
    for index, (name, weight) in enumerate(selection.weights.items()):
        if not math.isfinite(weight):
            raise InvalidRequest(
                f"{field}.loras.adapters[{index}].weight",
                f"weight {weight} of adapter `{name}` is not a finite number",
                value=str(weight),
            )


def version_named(versions: Mapping[str, Version], name: str) -> Version:
    """The resident version of a name.

    Raises:
        AdapterNotFound: lists what is resident, and the closest name.
    """
    if name in versions:
        return versions[name]
    known = sorted(versions)
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean `{close[0]}`?" if close else ""
    more = f" and {len(known) - 10} more" if len(known) > 10 else ""
    listed = f"resident: {', '.join(known[:10])}{more}" if known else "none is loaded"
    raise AdapterNotFound(f"no adapter `{name}` is loaded ({listed}){hint}", adapter=name)


def versions_of(versions: Mapping[str, Version], selection: ResolvedSelection, field: str) -> list[Version]:
    """The versions that a selection names, in its order.

    Raises:
        AdapterNotFound: a name is not resident.
        AdapterWrongKind: an X-LoRA in a sum, or a LoRA as a mixture.
        InvalidRequest: bad weights.
    """
    if isinstance(selection, BaseSelection):
        return []
    if isinstance(selection, XLoraSelection):
        version = version_named(versions, selection.name)
        if version.loaded.kind is not AdapterKind.XLORA:
            raise AdapterWrongKind(
                f"adapter `{selection.name}` is a LoRA: select it with `loras`, not `xlora`", adapter=selection.name
            )
        return [version]
    check_weights(selection, field)
    found = [version_named(versions, name) for name in selection.weights]
    for version in found:
        if version.loaded.kind is not AdapterKind.LORA:
            raise AdapterWrongKind(
                f"adapter `{version.name}` is an X-LoRA: select it with `xlora`, not in a sum of LoRAs",
                adapter=version.name,
            )
    return found


def mixture_of(found: list[Version], selection: ResolvedSelection) -> tuple[Mixture, tuple[AppliedAdapter, ...]]:
    """What the engine applies, and what the response says of it.

    Constant banks are sorted by content, so that a sum does not depend on how the request spells it; a weight of 0
    contributes nothing and is left out of the sum, but not of what is reported.
    """
    if isinstance(selection, BaseSelection):
        return Mixture(), ()
    if isinstance(selection, XLoraSelection):
        loaded = found[0].loaded
        assert isinstance(loaded, LoadedXLora)
        return Mixture(xlora=XLoraMixture(loaded.bank, loaded.classifier)), (found[0].applied(None),)
    constant = []
    for version in found:
        assert isinstance(version.loaded, LoadedLora)
        weight = float(selection.weights[version.name])
        if weight != 0.0:
            constant.append(WeightedBank(version.loaded.bank, weight))
    constant.sort(key=lambda bank: (bank.bank.digest, bank.weight))
    applied = tuple(version.applied(float(selection.weights[version.name])) for version in found)
    return Mixture(constant=tuple(constant)), applied
