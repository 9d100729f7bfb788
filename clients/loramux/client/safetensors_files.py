"""Safetensors files whose tensors get other names: their bytes are carried over, whatever their type.

A file is the length of its header (8 bytes, little-endian), the header (JSON: name -> dtype, shape, offsets), the data.
Source: the format's description in the safetensors repository. Nothing here looks into the data, so neither numpy's
missing types nor a rounding can get in the way.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loramux.client.errors import invalid_argument

MAX_HEADER_BYTES = 100_000_000  # the limit of the format


@dataclass(frozen=True, slots=True)
class TensorFile:
    """What a file holds: entries by name (dtype, shape, data_offsets), and the data."""

    entries: Mapping[str, Mapping[str, Any]]
    metadata: Mapping[str, str]
    data: bytes

    @property
    def names(self) -> frozenset[str]:
        """Names of the tensors."""
        return frozenset(self.entries)

    def renamed(self, name: Callable[[str], str]) -> TensorFile:
        """The same tensors under other names."""
        return TensorFile({name(key): entry for key, entry in self.entries.items()}, self.metadata, self.data)

    def with_zeros_like_rows_of(self, matrix: str, added: str) -> TensorFile:
        """One more tensor: a zero for each row of a matrix, of its type (in every type zero is all zero bits)."""
        entry = self.entries[matrix]
        begin, end = entry["data_offsets"]
        rows, columns = entry["shape"]
        size = (end - begin) // columns
        offsets = [len(self.data), len(self.data) + size]
        zeros = {"dtype": entry["dtype"], "shape": [rows], "data_offsets": offsets}
        return TensorFile({**self.entries, added: zeros}, self.metadata, self.data + bytes(size))

    def write(self, path: Path) -> None:
        """Writes the file. Raises OSError."""
        document = {"__metadata__": dict(self.metadata)} if self.metadata else {}
        header = json.dumps({**document, **self.entries}, separators=(",", ":")).encode()
        header += b" " * (-len(header) % 8)  # data begins at a multiple of 8
        path.write_bytes(struct.pack("<Q", len(header)) + header + self.data)


def read_tensor_file(path: Path) -> TensorFile:
    """Reads a file. Raises OSError, and InvalidArgument if it is no safetensors file."""
    content = path.read_bytes()
    length = struct.unpack("<Q", content[:8])[0] if len(content) >= 8 else -1
    if not 0 <= length <= min(MAX_HEADER_BYTES, len(content) - 8):
        raise invalid_argument(str(path), "is not a safetensors file: its header does not fit in it")
    try:
        header = json.loads(content[8 : 8 + length])
        metadata = header.pop("__metadata__", {})
        data = content[8 + length :]
        for name, entry in header.items():
            begin, end = entry["data_offsets"]
            if not (0 <= begin <= end <= len(data)) or not all(side > 0 for side in entry["shape"]):
                raise ValueError(f"{name} lies outside of the data or is empty")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise invalid_argument(str(path), f"is not a safetensors file ({error})") from error
    return TensorFile(header, metadata, data)
