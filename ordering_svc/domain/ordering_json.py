"""The ordering file: JSON bytes to a document and its problems, and a document to its canonical bytes.

Canonical bytes are those that the reference system's `create_ordering.py` writes: one line, `json.dumps` defaults, keys
in the order order, layers, base_model_id, preload_adapters, absent keys left out, no newline at the end.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field

from ordering_svc.domain.ordering import DOCUMENT_KEYS, MAX_FILE_BYTES, LayerRow, OrderingDocument, PreloadAdapter
from ordering_svc.domain.problems import Problem, Severity, shown

LARGEST_ROW = 2**63 - 1  # what a message can carry
PRELOAD_KEYS = ("name", "adapter_model_id")


class JsonObject(tuple[tuple[str, object], ...]):
    """A JSON object as its pairs, so that order and duplicate keys survive."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class ParsedFile:
    """What could be read of a file, and what could not."""

    document: OrderingDocument  # without the layers whose row could not be read; other entries keep their place
    problems: tuple[Problem, ...]
    keys: tuple[str, ...]  # top-level keys in file order


@dataclass(slots=True)
class _Reading:
    """The problems found so far in one file."""

    problems: list[Problem] = field(default_factory=list)

    def refuse(self, code: str, place: str, message: str, entry: int = 0) -> None:
        self.problems.append(Problem(code, place, message, entry=entry))

    def warn(self, code: str, place: str, message: str, entry: int = 0) -> None:
        self.problems.append(Problem(code, place, message, Severity.WARNING, entry))


def render_file(document: OrderingDocument) -> bytes:
    """The canonical bytes of a document."""
    content: dict[str, object] = {}
    if document.order is not None:
        content["order"] = list(document.order)
    if document.layers is not None:
        content["layers"] = {layer.path: layer.row for layer in document.layers}
    if document.base_model_id is not None:
        content["base_model_id"] = document.base_model_id
    if document.preload_adapters is not None:
        content["preload_adapters"] = [
            {"name": adapter.name, "adapter_model_id": adapter.adapter_model_id}
            for adapter in document.preload_adapters
        ]
    return json.dumps(content).encode("ascii")


def parse_file(file: bytes) -> ParsedFile:
    """Read as much of a file as can be read; never raises, whatever the bytes are."""
    reading = _Reading()
    pairs = _pairs_of(file, reading)
    if pairs is None:
        return ParsedFile(OrderingDocument(), tuple(reading.problems), ())
    values: dict[str, object] = {}
    for key, value in pairs:
        if key in values:
            reading.refuse("KEY_DUPLICATE", _place(key), f"The key `{shown(key)}` is there more than once.")
            continue
        values[key] = value
        if key not in DOCUMENT_KEYS:
            reading.warn(
                "UNKNOWN_KEY", _place(key), f"The key `{shown(key)}` means nothing in an ordering: kept, not used."
            )
    document = OrderingDocument(
        order=_order(values["order"], reading) if "order" in values else None,
        layers=_layers(values["layers"], reading) if "layers" in values else None,
        base_model_id=_base_model_id(values["base_model_id"], reading) if "base_model_id" in values else None,
        preload_adapters=_preload(values["preload_adapters"], reading) if "preload_adapters" in values else None,
    )
    return ParsedFile(document, tuple(reading.problems), tuple(values))


def _place(key: str) -> str:
    return key if key in DOCUMENT_KEYS else shown(key)


def _pairs_of(file: bytes, reading: _Reading) -> JsonObject | None:
    if len(file) > MAX_FILE_BYTES:
        reading.refuse("FILE_TOO_LARGE", "", f"The file has {len(file)} bytes, the limit is {MAX_FILE_BYTES}.")
        return None
    try:
        content = json.loads(file.decode("utf-8"), object_pairs_hook=JsonObject, parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        at = len(file[: error.start].decode("utf-8"))
        message = f"The file is not UTF-8: byte 0x{file[error.start]:02x} at offset {error.start}."
        reading.refuse("NOT_UTF8", "", message, at)
    except RecursionError:
        reading.refuse("JSON_TOO_DEEP", "", "The file nests its values too deeply.")
    except ValueError as error:  # JSONDecodeError is one; so are NaN and integers of thousands of digits
        at = error.pos if isinstance(error, json.JSONDecodeError) else 0
        reading.refuse("JSON_INVALID", "", f"The file is not JSON: {shown(str(error))}.", at)
    else:
        if isinstance(content, JsonObject):
            return content
        reading.refuse("NOT_AN_OBJECT", "", f"The file holds {_kind(content)}, an ordering is a JSON object.")
    return None


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is not a JSON value")


def _kind(value: object) -> str:
    if isinstance(value, JsonObject):
        return "an object"
    names = {bool: "a truth value", str: "a string", list: "a list", int: "a number", float: "a number"}
    return names.get(type(value), "null")


def _is_text(value: object, place: str, entry: int, reading: _Reading) -> bool:
    if not isinstance(value, str):
        reading.refuse("TYPE_WRONG", place, f"{place} is {_kind(value)}, expected a string.", entry)
        return False
    if not value.isascii() and any("\ud800" <= letter <= "\udfff" for letter in value):
        reading.refuse("NOT_UNICODE", place, f"{place} holds half a surrogate pair: `{shown(value)}`.", entry)
        return False
    return True


def _order(value: object, reading: _Reading) -> tuple[str, ...]:
    if not isinstance(value, list):
        reading.refuse("TYPE_WRONG", "order", f"order is {_kind(value)}, expected a list of adapter names.")
        return ()
    places = ((f"order[{index}]", index, name) for index, name in enumerate(value))
    return tuple(name if _is_text(name, place, index, reading) else _unreadable(place) for place, index, name in places)


def _unreadable(place: str) -> str:
    """Stands for a text that could not be read, so that what follows keeps its place and nothing is said twice."""
    return f"unreadable {place}"


def _layers(value: object, reading: _Reading) -> tuple[LayerRow, ...]:
    if not isinstance(value, JsonObject):
        reading.refuse("TYPE_WRONG", "layers", f"layers is {_kind(value)}, expected an object of module path to row.")
        return ()
    return tuple(_rows(value, reading))


def _rows(pairs: JsonObject, reading: _Reading) -> Iterator[LayerRow]:
    seen: set[str] = set()
    for entry, (path, row) in enumerate(pairs):
        if path not in seen and type(row) is int and 0 <= row <= LARGEST_ROW and path.isascii():  # nearly all are
            yield LayerRow(path, row)
        else:
            yield from _unusual_row(path, row, entry, reading, is_second=path in seen)
        seen.add(path)


def _unusual_row(path: str, row: object, entry: int, reading: _Reading, *, is_second: bool) -> Iterator[LayerRow]:
    place = layer_place(path)
    if is_second:
        reading.refuse("KEY_DUPLICATE", place, f"The layer `{shown(path)}` is there twice.", entry)
    elif not _is_text(path, place, entry, reading):
        pass
    elif type(row) is not int or not -LARGEST_ROW <= row <= LARGEST_ROW:
        message = f"The row of layer `{shown(path)}` is `{shown(row)}`, expected a whole number from 0."
        reading.refuse("ROW_TYPE", place, message, entry)
    else:
        yield LayerRow(path, row)


def layer_place(path: str) -> str:
    """The field path of a layer, for instance `layers["lm_head"]`."""
    return f"layers[{json.dumps(shown(path), ensure_ascii=False)}]"


def _base_model_id(value: object, reading: _Reading) -> str:
    return str(value) if _is_text(value, "base_model_id", 0, reading) else _unreadable("base_model_id")


def _preload(value: object, reading: _Reading) -> tuple[PreloadAdapter, ...]:
    if not isinstance(value, list):
        reading.refuse("TYPE_WRONG", "preload_adapters", f"preload_adapters is {_kind(value)}, expected a list.")
        return ()
    return tuple(_preload_adapter(index, entry, reading) for index, entry in enumerate(value))


def _preload_adapter(index: int, value: object, reading: _Reading) -> PreloadAdapter:
    place = f"preload_adapters[{index}]"
    unread = {key: _unreadable(f"{place}.{key}") for key in PRELOAD_KEYS}
    if not isinstance(value, JsonObject):
        message = f"{place} is {_kind(value)}, expected an object with name and adapter_model_id."
        reading.refuse("TYPE_WRONG", place, message, index)
        return PreloadAdapter(**unread)
    values: dict[str, str] = {}
    for key, part in value:
        if key not in PRELOAD_KEYS:
            reading.warn("UNKNOWN_KEY", place, f"{place} has the key `{shown(key)}`, which means nothing.", index)
        elif key in values:
            reading.refuse("KEY_DUPLICATE", place, f"{place} has the key {key} more than once.", index)
        else:
            values[key] = str(part) if _is_text(part, f"{place}.{key}", index, reading) else unread[key]
    for key in (key for key in PRELOAD_KEYS if key not in values):
        reading.refuse("PRELOAD_INCOMPLETE", f"{place}.{key}", f"{place} has no {key}.", index)
    return PreloadAdapter(**(unread | values))
