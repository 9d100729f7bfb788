"""Makes an ordering file from another one: new adapter names, or more or fewer adapters to preload.

It does what the reference system's `set_names.py` and `lora_add_preload_adapters.py` do, with one promise more: only
the value of the changed key is written anew, every other byte of the file stays. A key that the file lacks is added at
its end. Of a file in the canonical form the result is in the canonical form.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ordering_svc.domain.json_splicing import with_value
from ordering_svc.domain.ordering import PreloadAdapter
from ordering_svc.domain.ordering_json import parse_file
from ordering_svc.domain.problems import shown
from ordering_svc.errors import InvalidRequest, InvalidValue, Violation


@dataclass(frozen=True, slots=True)
class Derivation:
    """What to change; None and empty where nothing. Removals come before additions, so both together replace."""

    adapter_names: tuple[str, ...] | None = None
    add_preload_adapters: tuple[PreloadAdapter, ...] = ()
    remove_preload_adapters: tuple[str, ...] = ()


def derive(file: bytes, derivation: Derivation) -> bytes:
    """The file after the change; `file` is a valid ordering file.

    Raises:
        InvalidValue: nothing is to be changed.
        InvalidRequest: names that are given twice, to be removed but not there, or to be added but there already; one
            violation each.
    """
    if derivation == Derivation():
        raise InvalidValue("adapter_names", "nothing to derive: give adapter names, or adapters to preload or remove")
    there = parse_file(file).document.preload_adapters or ()
    violations = tuple(_violations(derivation, [adapter.name for adapter in there]))
    if violations:
        raise InvalidRequest(violations)
    text = file.decode("utf-8")
    if derivation.adapter_names is not None:
        text = with_value(text, "order", list(derivation.adapter_names))
    if derivation.add_preload_adapters or derivation.remove_preload_adapters:
        kept = [adapter for adapter in there if adapter.name not in derivation.remove_preload_adapters]
        preload = [
            {"name": adapter.name, "adapter_model_id": adapter.adapter_model_id}
            for adapter in (*kept, *derivation.add_preload_adapters)
        ]
        text = with_value(text, "preload_adapters", preload)
    return text.encode("utf-8")


def _violations(derivation: Derivation, there: Sequence[str]) -> Iterator[Violation]:
    added = [adapter.name for adapter in derivation.add_preload_adapters]
    yield from _twice("adapter_names", derivation.adapter_names or (), "{}")
    yield from _twice("add_preload_adapters", added, "{}.name")
    yield from _twice("remove_preload_adapters", derivation.remove_preload_adapters, "{}")
    for index, name in enumerate(derivation.remove_preload_adapters):
        if name not in there:
            known = ", ".join(shown(other) for other in there) or "none"
            message = f"`{shown(name)}` is not preloaded, so it cannot be removed; preloaded: {known}"
            yield Violation(f"remove_preload_adapters[{index}]", message, "PRELOAD_UNKNOWN")
    for index, name in enumerate(added):
        if name in there and name not in derivation.remove_preload_adapters:
            message = f"`{shown(name)}` is preloaded already: remove it in the same request to replace it"
            yield Violation(f"add_preload_adapters[{index}].name", message, "PRELOAD_DUPLICATE")


def _twice(field: str, names: Sequence[str], place: str) -> Iterator[Violation]:
    first: dict[str, int] = {}
    for index, name in enumerate(names):
        if name in first:
            where = place.format(f"{field}[{index}]")
            message = f"`{shown(name)}` is already {field}[{first[name]}]: give each name once"
            yield Violation(where, message, "NAME_DUPLICATE")
        first.setdefault(name, index)
