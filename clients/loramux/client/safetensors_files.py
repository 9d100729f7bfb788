"""Safetensors files whose tensors get other names: their bytes are carried over, whatever their type.

A file is the length of its header (8 bytes, little-endian), the header (JSON: name -> dtype, shape, offsets), the data.
Source: the format's description in the safetensors repository. Nothing here looks into the data, so neither numpy's
missing types nor a rounding can get in the way.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable, Collection, Mapping
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
        return self.with_tensor(added, {"dtype": entry["dtype"], "shape": [rows]}, bytes((end - begin) // columns))

    def with_tensor(self, name: str, entry: Mapping[str, Any], data: bytes) -> TensorFile:
        """One more tensor; of the entry only dtype and shape count."""
        offsets = [len(self.data), len(self.data) + len(data)]
        added = {"dtype": entry["dtype"], "shape": entry["shape"], "data_offsets": offsets}
        return TensorFile({**self.entries, name: added}, self.metadata, self.data + data)

    def with_all_of(self, other: TensorFile) -> TensorFile:
        """The tensors of both; none may be in both."""
        assert not self.names & other.names
        both = self
        for name, entry in other.entries.items():
            begin, end = entry["data_offsets"]
            both = both.with_tensor(name, entry, other.data[begin:end])
        return both

    def write(self, path: Path) -> None:
        """Writes the file. Raises OSError."""
        document = {"__metadata__": dict(self.metadata)} if self.metadata else {}
        header = json.dumps({**document, **self.entries}, separators=(",", ":")).encode()
        header += b" " * (-len(header) % 8)  # data begins at a multiple of 8
        path.write_bytes(struct.pack("<Q", len(header)) + header + self.data)


def read_tensor_file(path: Path, only: Collection[str] | None = None) -> TensorFile:
    """Reads a file, or of it the tensors of these names. Raises OSError, and InvalidArgument for any other file."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        length = struct.unpack("<Q", file.read(8))[0] if size >= 8 else -1
        if not 0 <= length <= min(MAX_HEADER_BYTES, size - 8):
            raise invalid_argument(str(path), "is not a safetensors file: its header does not fit in it")
        try:
            header = json.loads(file.read(length))
            metadata = header.pop("__metadata__", {})
            start = file.tell()
            for name, entry in header.items():
                begin, end = entry["data_offsets"]
                if not (0 <= begin <= end <= size - start) or not all(side > 0 for side in entry["shape"]):
                    raise ValueError(f"{name} lies outside of the data or is empty")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise invalid_argument(str(path), f"is not a safetensors file ({error})") from error
        if only is None:
            return TensorFile(header, metadata, file.read())
        chosen = TensorFile({}, metadata, b"")
        for name in sorted(header.keys() & set(only)):
            begin, end = header[name]["data_offsets"]
            file.seek(start + begin)
            chosen = chosen.with_tensor(name, header[name], file.read(end - begin))
        return chosen
