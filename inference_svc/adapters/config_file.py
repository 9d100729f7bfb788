"""JSON configuration files of adapters: read with a cap on size and depth, their values checked by type."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from inference_svc.adapters.base_model import summary
from inference_svc.errors import AdapterMalformed, AdapterUnsupported, SourceNotFound

# The interpreter is held while a text is parsed, and tokens wait: 256 KiB take up to about 15 ms. Half of that is room
# for two patterns for each of a thousand modules.
MAX_CONFIG_BYTES = 256 << 10
MAX_CONFIG_DEPTH = 32
MAX_CONFIG_CONTAINERS = 1000  # objects and lists; a hundred thousand of them would start the garbage collector
SHOWN_KEYS = 20


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """A JSON object, with the name of its file for error messages."""

    name: str
    values: Mapping[str, object]
    content: bytes = b""  # the file as it was read

    def refuse(self, key: str, expected: str) -> NoReturn:
        """Raise AdapterMalformed naming file, key and value."""
        value = json.dumps(self.values.get(key))
        shown = value if len(value) <= 100 else value[:97] + "..."
        raise AdapterMalformed(
            f"{self.name}: `{key}` is {shown}, expected {expected}", file=self.name, key=key, value=shown
        )

    def integer(self, key: str, default: int | None, minimum: int) -> int:
        """An integer not below `minimum`; without a default the key is required."""
        value = self.values.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
            self.refuse(key, f"an integer of at least {minimum}")
        return value

    def number(self, key: str, default: float | None) -> float:
        """A finite number."""
        value = self.values.get(key, default)
        if not is_finite_number(value):
            self.refuse(key, "a finite number")
        return as_float(value)

    def boolean(self, key: str, default: bool) -> bool:
        """true or false."""
        value = self.values.get(key, default)
        if not isinstance(value, bool):
            self.refuse(key, "true or false")
        return value

    def text(self, key: str, default: str | None) -> str:
        """A string; null stands for the default."""
        value = self.values.get(key)
        value = default if value is None else value
        if not isinstance(value, str):
            self.refuse(key, "a string")
        return value

    def refuse_unknown(self, known: Iterable[str]) -> None:
        """Refuse keys that nobody here understands and that say something.

        Raises:
            AdapterUnsupported: a key outside `known` with a value other than null, false, 0, or empty; lists them.
        """
        said = self.said(set(self.values) - set(known))
        if said:
            listed = summary([f"`{key}`: {json.dumps(self.values[key])[:60]}" for key in said], shown=SHOWN_KEYS)
            raise AdapterUnsupported(
                f"{self.name}: unknown keys, which may change what the adapter computes, are not supported: {listed}",
                file=self.name,
                key=said[0],
                keys=",".join(said[:SHOWN_KEYS]),
            )

    def said(self, keys: Iterable[str]) -> list[str]:
        """Those of the keys whose value says something, sorted: not null, false, 0, or empty."""
        return sorted(key for key in keys if self.values.get(key))


def read_config(path: Path, name: str) -> ConfigFile:
    """Read a JSON object; `name` is how messages call the file.

    Raises:
        SourceNotFound: there is no such file.
        AdapterMalformed: too large, not UTF-8, not JSON, nested too deeply, too many objects and lists, a key that is
            there twice, NaN, or not an object.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_CONFIG_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise SourceNotFound(f"{name} is missing", file=name) from error
    except OSError as error:
        raise SourceNotFound(f"{name} cannot be read: {error.strerror}", file=name) from error
    if len(raw) > MAX_CONFIG_BYTES:
        raise AdapterMalformed(f"{name} is larger than {MAX_CONFIG_BYTES} bytes", file=name)
    try:
        text = raw.decode("utf-8")
        # The parser recurses: brackets are counted first, so that depth cannot exhaust the stack.
        depth, containers = nesting(text)
        if depth > MAX_CONFIG_DEPTH:
            raise AdapterMalformed(f"{name} is nested more than {MAX_CONFIG_DEPTH} levels deep", file=name)
        if containers > MAX_CONFIG_CONTAINERS:
            raise AdapterMalformed(f"{name} has more than {MAX_CONFIG_CONTAINERS} objects and lists", file=name)
        values = json.loads(text, object_pairs_hook=_without_duplicates, parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        raise AdapterMalformed(f"{name} is not UTF-8: {error.reason} at byte {error.start}", file=name) from error
    except ValueError as error:
        raise AdapterMalformed(f"{name} is not valid JSON: {error}", file=name) from error
    if not isinstance(values, dict):
        raise AdapterMalformed(f"{name} is not a JSON object", file=name)
    return ConfigFile(name, values, raw)


def nesting(text: str) -> tuple[int, int]:
    """How deep brackets nest outside strings, and how many open."""
    depth = deepest = count = 0
    in_string = escaped = False
    for char in text:
        if in_string:
            in_string = escaped or char != '"'
            escaped = char == "\\" and not escaped
        elif char == '"':
            in_string = True
        elif char in "[{":
            count += 1
            depth += 1
            deepest = max(deepest, depth)
        elif char in "]}":
            depth -= 1
    return deepest, count


def is_finite_number(value: object) -> bool:
    """An int or float of JSON that a float can hold and that is finite."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def as_float(value: object) -> float:
    """The number that `is_finite_number` accepted."""
    assert isinstance(value, int | float)
    return float(value)


def _without_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    values: dict[str, object] = {}
    for key, value in pairs:
        if key in values:
            raise ValueError(f"key `{key[:100]}` appears twice")
        values[key] = value
    return values


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")
