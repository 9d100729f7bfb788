"""What differs between two documents: entry by entry, and told for people."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ordering_svc.domain.ordering import OrderingDocument
from ordering_svc.domain.ordering_json import layer_place
from ordering_svc.domain.problems import shown

SHORT_RUN = 2  # so many like differences are told one by one


@dataclass(frozen=True, slots=True)
class Difference:
    """One difference; the values are JSON, None where there is none."""

    field: str  # path into the document, for instance `order[1]` or `layers["lm_head"]`
    before: str | None
    after: str | None


def differences(before: OrderingDocument, after: OrderingDocument) -> tuple[Difference, ...]:
    """Every difference, in document order; none if the documents say the same.

    `order` is compared place by place, because the place is what an X-LoRA classifier knows an adapter by; `layers` and
    `preload_adapters` by path and name, because nothing depends on their place.
    """
    return (
        *_entries("order", _by_place(before.order), _by_place(after.order)),
        *_entries("layers", _layers(before), _layers(after)),
        *_entries("base_model_id", _single(before.base_model_id), _single(after.base_model_id)),
        *_entries("preload_adapters", _preload(before), _preload(after)),
    )


Entries = Mapping[str, object] | None  # by field path; None: the document has no such key


def _by_place(names: Sequence[str] | None) -> Entries:
    return None if names is None else {f"order[{place}]": name for place, name in enumerate(names)}


def _layers(document: OrderingDocument) -> Entries:
    return None if document.layers is None else {layer_place(layer.path): layer.row for layer in document.layers}


def _single(text: str | None) -> Entries:
    return None if text is None else {"base_model_id": text}


def _preload(document: OrderingDocument) -> Entries:
    if document.preload_adapters is None:
        return None
    return {
        f"preload_adapters[{json.dumps(adapter.name, ensure_ascii=False)}]": adapter.adapter_model_id
        for adapter in document.preload_adapters
    }


def _entries(key: str, before: Entries, after: Entries) -> Iterator[Difference]:
    if (before is None) != (after is None) and not (before or after):  # absent here, empty there
        empty = "{}" if key == "layers" else "[]"
        yield Difference(key, None if before is None else empty, None if after is None else empty)
    old, new = before or {}, after or {}
    for field in (*old, *(field for field in new if field not in old)):
        if field not in new:
            yield Difference(field, _json(old[field]), None)
        elif field not in old:
            yield Difference(field, None, _json(new[field]))
        elif old[field] != new[field]:
            yield Difference(field, _json(old[field]), _json(new[field]))


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def told(found: Sequence[Difference]) -> str:
    """The differences for people, one line each; a run of like ones, for instance rows that moved, is one line."""
    lines: list[str] = []
    for likeness, run in itertools.groupby(found, _likeness):
        alike = list(run)
        if len(alike) <= SHORT_RUN:
            lines += [_line(difference) for difference in alike]
        else:
            key, what = likeness
            lines.append(f"{key}: {len(alike)} entries {what}, from {_line(alike[0])} to {_line(alike[-1])}")
    return "\n".join(lines)


def _likeness(difference: Difference) -> tuple[str, str]:
    """Differences that follow each other and are alike are told as one: same key, same kind, same distance."""
    key = difference.field.partition("[")[0]
    if difference.before is None:
        return key, "added"
    if difference.after is None:
        return key, "removed"
    if key == "layers":
        return key, f"moved by {int(difference.after) - int(difference.before):+d}"
    return key, "changed"


def _line(difference: Difference) -> str:
    before, after = shown(difference.before), shown(difference.after)
    if difference.before is None:
        return f"{shown(difference.field)} added: {after}"
    if difference.after is None:
        return f"{shown(difference.field)} removed: {before}"
    return f"{shown(difference.field)}: {before} -> {after}"
