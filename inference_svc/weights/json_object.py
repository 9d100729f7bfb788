"""JSON objects in model files: read with a cap on size, without believing them."""

from __future__ import annotations

import json
import reprlib
from pathlib import Path

from inference_svc.weights.errors import FileMissing, MalformedFile

MAX_BYTES = 32 << 20


def read_json_object(path: Path) -> dict[str, object]:
    """A file's object.

    Raises:
        FileMissing: there is no such file, or it cannot be read.
        MalformedFile: it is too large, or see parse_json_object.
    """
    try:
        with path.open("rb") as file:
            text = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise FileMissing(str(path), f"cannot be read: {error.strerror}") from error
    if len(text) > MAX_BYTES:
        raise MalformedFile(str(path), f"it has more than the {MAX_BYTES} bytes allowed")
    try:
        return parse_json_object(text)
    except ValueError as error:
        raise MalformedFile(str(path), f"it {error}") from error


def parse_json_object(text: bytes) -> dict[str, object]:
    """The object in a text.

    Raises:
        ValueError: it is not UTF-8, not JSON, nested too deeply, not an object, or a key stands twice; the message goes
            on after the name of the text: `cannot be read: ...`.
    """
    try:
        value = json.loads(text.decode("utf-8"), object_pairs_hook=_without_duplicates)
    except RecursionError as error:
        raise ValueError("is nested too deeply") from error
    except ValueError as error:  # also an integer of thousands of digits
        raise ValueError(f"cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"is {reprlib.repr(value)}, not a JSON object")
    return value


def _without_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result: dict[str, object] = {}
    for key, value in pairs:
        if key in result:
            raise ValueError(f"the key {reprlib.repr(key)} stands twice")
        result[key] = value
    return result
