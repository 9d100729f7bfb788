"""JSON objects from files that strangers made: bounded in bytes and in values, without duplicate keys."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from ordering_svc.allowed_roots import AllowedRoots
from ordering_svc.domain.problems import shown
from ordering_svc.file_headers.files import malformed, opened

MAX_CONFIG_BYTES = 2**20
MAX_CONFIG_MARKS = 2**17


def read_json_object(path: Path, file: str, roots: AllowedRoots) -> Mapping[str, object]:
    """The object that a config file holds. Raises UnreadableFile."""
    with opened(path, file, roots) as (content, _):
        text = content.read(MAX_CONFIG_BYTES + 1)
    if len(text) > MAX_CONFIG_BYTES:
        raise malformed(file, f"it has more than {MAX_CONFIG_BYTES} bytes")
    return parsed_object(text, file, MAX_CONFIG_MARKS)


def parsed_object(text: bytes, file: str, max_marks: int) -> dict[str, object]:
    """The object in a text with at most so many brackets, colons and commas: a bound on the memory of its values.

    Raises UnreadableFile.
    """
    marks = sum(text.count(mark) for mark in (b"[", b"{", b":", b","))
    if marks > max_marks:
        raise malformed(file, f"its JSON has {marks} brackets, colons and commas, the limit is {max_marks}")
    try:
        value = json.loads(text.decode("utf-8"), object_pairs_hook=_without_duplicates, parse_constant=_refused)
    except RecursionError:
        raise malformed(file, "its JSON is nested too deeply") from None
    except ValueError as error:  # not UTF-8, not JSON, a duplicate key, an integer of thousands of digits
        raise malformed(file, f"its JSON cannot be read: {shown(str(error))}") from None
    if not isinstance(value, dict):
        raise malformed(file, "its JSON is no object")
    return value


def _without_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    values = dict(pairs)
    if len(values) != len(pairs):
        keys: set[str] = set()
        for key, _ in pairs:
            if key in keys:
                raise ValueError(f"the key `{shown(key)}` is there twice")
            keys.add(key)
    return values


def _refused(name: str) -> object:
    raise ValueError(f"{name} is not a JSON value")
