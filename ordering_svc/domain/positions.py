"""Where in an ordering file a problem is: line and column, from a second look at the text."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from ordering_svc.domain.ordering_json import PRELOAD_KEYS, layer_place
from ordering_svc.domain.problems import Problem, shown

_DECODER = json.JSONDecoder(strict=True)
_SPACE = re.compile(r"[ \t\n\r]*")


@dataclass(frozen=True, slots=True)
class Position:
    """A place in a text, as editors count."""

    line: int  # from 1
    column: int  # from 1, in characters


@dataclass(slots=True)
class Positions:
    """Looks up the fields of one file; a field that the file does not have is at its beginning."""

    text: str
    places: dict[str, list[int]] = field(default_factory=dict)  # field path -> offsets, in file order

    def of(self, problem: Problem) -> Position:
        """Where the problem is."""
        if not problem.field:
            return self._position(min(problem.entry, len(self.text)))
        name = problem.field
        while name and name not in self.places:  # of a key that is missing, what should hold it
            name = name.rpartition(".")[0]
        found = self.places.get(name, [0])
        return self._position(found[-1] if problem.code == "KEY_DUPLICATE" else found[0])

    def _position(self, offset: int) -> Position:
        start = self.text.rfind("\n", 0, offset) + 1
        return Position(self.text.count("\n", 0, offset) + 1, offset - start + 1)


def positions_in(file: bytes) -> Positions:
    """The fields of a file; never raises: of a file that is no JSON there are none."""
    positions = Positions(file.decode("utf-8", "replace"))
    try:
        for key, offset, value in _members(positions.text, _skip_space(positions.text, 0)):
            _add(positions, shown(key), offset)
            for place, at in _inside(positions.text, key, value):
                _add(positions, place, at)
    except (ValueError, IndexError, RecursionError):
        pass
    return positions


def _add(positions: Positions, place: str, offset: int) -> None:
    positions.places.setdefault(place, []).append(offset)


def _inside(text: str, key: str, start: int) -> Iterator[tuple[str, int]]:
    """The fields of one top-level value."""
    if key == "layers" and text[start] == "{":
        for path, offset, _ in _members(text, start):
            yield layer_place(path), offset
    elif key in ("order", "preload_adapters") and text[start] == "[":
        for index, offset in enumerate(_items(text, start)):
            yield f"{key}[{index}]", offset
            if key == "preload_adapters" and text[offset] == "{":
                for part, at, _ in _members(text, offset):
                    if part in PRELOAD_KEYS:
                        yield f"{key}[{index}].{part}", at


def _members(text: str, start: int) -> Iterator[tuple[str, int, int]]:
    """The key of each member of the object at `start`, with the offsets of key and value."""
    at = _opened(text, start, "{")
    while text[at] != "}":
        key, end = _DECODER.raw_decode(text, at)
        value = _skip_space(text, _skip_space(text, end) + 1)  # over the colon
        yield key, at, value
        at = _next(text, _DECODER.raw_decode(text, value)[1])


def _items(text: str, start: int) -> Iterator[int]:
    """The offset of each item of the list at `start`."""
    at = _opened(text, start, "[")
    while text[at] != "]":
        yield at
        at = _next(text, _DECODER.raw_decode(text, at)[1])


def _opened(text: str, start: int, bracket: str) -> int:
    if text[start] != bracket:
        raise ValueError(f"expected {bracket}")
    return _skip_space(text, start + 1)


def _next(text: str, end: int) -> int:
    """The next member or item, or the closing bracket."""
    at = _skip_space(text, end)
    return _skip_space(text, at + 1) if text[at] == "," else at


def _skip_space(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    assert match is not None  # it may be empty
    return match.end()
