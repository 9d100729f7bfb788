"""Changes one key of a JSON object's text and leaves every other byte as it is."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass

_SPACE = re.compile(r"[ \t\r\n]*")
_FIRST_INDENT = re.compile(r"[ \t\r\n]*\{[ \t]*\r?\n([ \t]+)\"")
_DECODER = json.JSONDecoder()


@dataclass(frozen=True, slots=True)
class Member:
    """A key of the object, and where its value stands in the text."""

    key: str
    start: int
    end: int


def with_value(text: str, key: str, value: object) -> str:
    """The text with `key` set to `value`: in its place where it is there, at the end of the object where it is not.

    The value is written like the text around it: indented if the object is, with non-ASCII letters if there are some.

    Raises:
        ValueError: the text is no JSON object.
    """
    members = tuple(members_of(text))
    indented = _FIRST_INDENT.match(text)
    indent = indented[1] if indented else None
    written = json.dumps(value, indent=indent, ensure_ascii=text.isascii())
    if indent is not None:
        written = written.replace("\n", f"\n{indent}")
    for member in members:
        if member.key == key:
            return text[: member.start] + written + text[member.end :]
    quoted = json.dumps(key)
    if not members:
        opening = text.index("{") + 1
        return f"{text[:opening]}{quoted}: {written}{text[opening:]}"
    last = members[-1].end
    before = f",\n{indent}" if indent is not None else ", "
    return f"{text[:last]}{before}{quoted}: {written}{text[last:]}"


def members_of(text: str) -> Iterator[Member]:
    """The keys of a JSON object with the places of their values, in the order of the text. Raises ValueError."""
    place = _expect(text, _skip(text, 0), "{")
    if text[place : place + 1] == "}":
        return
    while True:
        key, place = _DECODER.raw_decode(text, place)
        if not isinstance(key, str):
            raise ValueError(f"expected a key at character {place}")
        start = _expect(text, _skip(text, place), ":")
        _value, end = _DECODER.raw_decode(text, start)
        yield Member(key, start, end)
        place = _skip(text, end)
        if text[place : place + 1] == "}":
            return
        place = _expect(text, place, ",")


def _skip(text: str, place: int) -> int:
    found = _SPACE.match(text, place)
    assert found is not None  # it matches nothing at least
    return found.end()


def _expect(text: str, place: int, mark: str) -> int:
    """The place of what follows the mark. Raises ValueError."""
    if text[place : place + 1] != mark:
        raise ValueError(f"expected {mark!r} at character {place}")
    return _skip(text, place + 1)
