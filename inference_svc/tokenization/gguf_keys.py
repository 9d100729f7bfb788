"""Typed access to what a GGUF file says of its tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from inference_svc.weights.errors import MalformedFile
from inference_svc.weights.gguf_header import MetadataValue

PREFIX = "tokenizer.ggml."


class TokenizerKeys:
    """The `tokenizer.*` keys of a file; every one that is missing or makes no sense is a MalformedFile by name."""

    def __init__(self, path: Path, metadata: Mapping[str, MetadataValue]) -> None:
        self._path = path
        self._metadata = metadata

    def malformed(self, message: str) -> MalformedFile:
        """The error to raise."""
        return MalformedFile(str(self._path), message)

    def has(self, key: str) -> bool:
        """The file has the key."""
        return key in self._metadata

    def text(self, key: str, default: str) -> str:
        """A string."""
        value = self._metadata.get(key, default)
        if not isinstance(value, str):
            raise self._wrong(key, "a string")
        return value

    def flag(self, key: str, default: bool) -> bool:
        """A boolean."""
        value = self._metadata.get(key, default)
        if not isinstance(value, bool):
            raise self._wrong(key, "a boolean")
        return value

    def strings(self, key: str) -> list[str]:
        """A list of strings that is not empty."""
        value = self._metadata.get(key)
        if not isinstance(value, list) or not value or not isinstance(value[0], str):
            raise self._wrong(key, "a list of strings")
        return [str(item) for item in value]

    def integers(self, key: str, count: int) -> list[int]:
        """A list of so many whole numbers."""
        value = self._metadata.get(key)
        if not isinstance(value, list) or type(value[0] if value else None) is not int or len(value) != count:
            raise self._wrong(key, f"a list of {count} whole numbers")
        return [int(item) for item in value]

    def numbers(self, key: str, count: int) -> list[float]:
        """A list of so many numbers."""
        value = self._metadata.get(key)
        kind = type(value[0]) if isinstance(value, list) and value else None
        if not isinstance(value, list) or kind not in (int, float) or len(value) != count:
            raise self._wrong(key, f"a list of {count} numbers")
        return [float(item) for item in value]

    def token_id(self, name: str, num_tokens: int, default: int | None = None) -> int | None:
        """The id of `tokenizer.ggml.NAME_token_id`."""
        key = f"{PREFIX}{name}_token_id"
        value = self._metadata.get(key)
        if value is None:
            return default if default is not None and default < num_tokens else None
        if type(value) is not int or not 0 <= value < num_tokens:
            raise self._wrong(key, f"one of the ids 0 to {num_tokens - 1}")
        return value

    def _wrong(self, key: str, expected: str) -> MalformedFile:
        value = self._metadata.get(key)
        held = f"a list of {len(value)}, {value[:3]!r:.60}..." if isinstance(value, list) else f"{value!r:.80}"
        return self.malformed(f"metadata key {key!r} is {held}, not {expected}")
