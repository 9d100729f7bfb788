"""Reads the settings of a model file, and refuses what is missing, of the wrong type, or nonsensical."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping
from typing import TypeGuard

from inference_svc.weights.errors import MalformedFile, UnsupportedFile

MAX_LAYERS = 4096
MAX_WIDTH = 1 << 20
MAX_CONTEXT = 1 << 24


class Settings:
    """Keys and values of GGUF metadata or of config.json; remembers which keys were asked for."""

    def __init__(self, path: str, values: Mapping[str, object], what: str, prefix: str = "") -> None:
        """`what` is how messages call a key; `prefix` goes before every key that is asked for."""
        self.path = path
        self.values = values
        self.prefix = prefix
        self.used: set[str] = set()
        self._what = what

    def get(self, key: str) -> object:
        """A value of any type; None if the key is missing or null."""
        self.used.add(self.prefix + key)
        return self.values.get(self.prefix + key)

    def has(self, key: str) -> bool:
        """The key is there, be it null."""
        return self.prefix + key in self.values

    def count(self, key: str, limit: int, default: int | None = None) -> int:
        """A whole number from 1 to `limit`. Raises MalformedFile."""
        value = self._or_default(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= limit:
            raise self.malformed(key, f"a whole number from 1 to {limit}", value)
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A positive number. Raises MalformedFile."""
        value = self._or_default(key, default)
        if not is_number(value) or not value > 0:
            raise self.malformed(key, "a positive number", value)
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        """A truth value. Raises MalformedFile."""
        value = self._or_default(key, default)
        if not isinstance(value, bool):
            raise self.malformed(key, "true or false", value)
        return value

    def numbers(self, key: str, length: int) -> tuple[float, ...]:
        """A list of positive numbers. Raises MalformedFile."""
        value = self.get(key)
        if not isinstance(value, list) or len(value) != length or not all(is_number(v) and v > 0 for v in value):
            raise self.malformed(key, f"a list of {length} positive numbers", value)
        return tuple(float(v) for v in value)

    def section(self, key: str) -> Settings | None:
        """The settings in a setting; None if it is missing or null. Raises MalformedFile."""
        value = self.get(key)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.malformed(key, "an object", value)
        return Settings(self.path, value, f"{self._what} of {key!r}")

    def malformed(self, key: str, expected: str, value: object) -> MalformedFile:
        """The error for a value that is not what it must be."""
        said = "is missing" if value is None else f"is {reprlib.repr(value)}"
        return MalformedFile(self.path, f"{self._what} {self.prefix + key!r} {said}, expected {expected}")

    def unsupported(self, key: str, why: str) -> UnsupportedFile:
        """The error for a value that is valid and asks for something else than what this service computes."""
        value = reprlib.repr(self.values.get(self.prefix + key))
        return UnsupportedFile(
            self.path, f"{self._what} {self.prefix + key!r} is {value}, which is not supported: {why}"
        )

    def _or_default(self, key: str, default: object) -> object:
        value = self.get(key)
        return default if value is None else value


def is_number(value: object) -> TypeGuard[float]:
    """A finite int or float that is no truth value."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer that no float can hold
        return False
