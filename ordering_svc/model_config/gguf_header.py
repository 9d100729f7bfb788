"""Reads the header of a GGUF file: its metadata and its tensors' shapes, with a bound on every length."""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ordering_svc.errors import ModelConfigInvalid

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_HEADER_BYTES = 256 * 2**20
MAX_METADATA = 65536
MAX_TENSORS = 2**17
MAX_STRING_BYTES = 16 * 2**20
MAX_DIMENSIONS = 4

_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING = 8
_ARRAY = 9

Value = int | float | bool | str


@dataclass(frozen=True, slots=True)
class ArrayLength:
    """An array of the metadata: only its length is kept."""

    count: int


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """What the header says of one tensor."""

    shape: tuple[int, ...]  # slowest axis first
    type_number: int  # of the ggml types
    offset: int  # from the end of the header


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """What stands before the weights."""

    metadata: dict[str, Value | ArrayLength]
    tensors: dict[str, GgufTensor]  # by name
    nbytes: int  # of the header, without the padding before the weights


def read_gguf_header(path: Path) -> GgufHeader:
    """Read a GGUF file up to its weights.

    Raises:
        ModelConfigInvalid: it is no GGUF file of version 2 or 3, is cut short, or lies about a length.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        return _Header(file, min(path.stat().st_size, MAX_HEADER_BYTES), path.name).read()


class _Header:
    """A walk through one file that never takes more bytes than the file has."""

    def __init__(self, file: BinaryIO, size: int, name: str) -> None:
        self._file = file
        self._size = size
        self._left = size
        self._name = name

    def read(self) -> GgufHeader:
        if self._take(4, "the magic number") != MAGIC:
            raise self._fault("it does not begin with GGUF")
        version = int(self._scalar(4))
        if version not in VERSIONS:
            raise self._fault(f"version {version} is not supported, only {VERSIONS[0]} and {VERSIONS[1]} are")
        num_tensors = self._count(MAX_TENSORS, "tensors")
        num_metadata = self._count(MAX_METADATA, "metadata entries")
        metadata: dict[str, Value | ArrayLength] = {}
        for _ in range(num_metadata):
            key = self._string("a metadata key")
            if key in metadata:
                raise self._fault(f"the metadata key {key[:80]!r} is there twice")
            metadata[key] = self._value(int(self._scalar(4)), key)
        tensors: dict[str, GgufTensor] = {}
        for _ in range(num_tensors):
            name = self._string("a tensor name")
            if name in tensors:
                raise self._fault(f"the tensor {name[:80]!r} is there twice")
            num_dimensions = int(self._scalar(4))
            if num_dimensions > MAX_DIMENSIONS:
                raise self._fault(f"a tensor has {num_dimensions} dimensions, the limit is {MAX_DIMENSIONS}")
            layout = f"<{num_dimensions}QIQ"
            *sizes, type_number, offset = struct.unpack(layout, self._take(struct.calcsize(layout), "a tensor's shape"))
            tensors[name] = GgufTensor(tuple(reversed(sizes)), type_number, offset)
        return GgufHeader(metadata, tensors, self._size - self._left)

    def _take(self, count: int, what: str) -> bytes:
        if count > self._left:
            raise self._fault(f"{what} needs {count} bytes, but only {self._left} are left")
        self._left -= count
        taken = self._file.read(count)
        if len(taken) < count:
            raise self._fault(f"it ends inside {what}")
        return taken

    def _skip(self, count: int, what: str) -> None:
        if count > self._left:
            raise self._fault(f"{what} needs {count} bytes, but only {self._left} are left")
        self._left -= count
        self._file.seek(count, os.SEEK_CUR)

    def _scalar(self, kind: int) -> int | float | bool:
        layout = _SCALARS[kind]
        (value,) = struct.unpack(layout, self._take(struct.calcsize(layout), "a number"))
        assert isinstance(value, int | float)
        return value

    def _count(self, limit: int, what: str) -> int:
        count = int(self._scalar(10))
        if count > limit:
            raise self._fault(f"it claims {count} {what}, the limit is {limit}")
        return count

    def _string(self, what: str) -> str:
        return self._take(self._count(MAX_STRING_BYTES, f"bytes for {what}"), what).decode("utf-8", "replace")

    def _value(self, kind: int, key: str) -> Value | ArrayLength:
        if kind == _STRING:
            return self._string(f"the value of {key[:80]!r}")
        if kind == _ARRAY:
            return self._skip_array(key)
        if kind not in _SCALARS:
            raise self._fault(f"the metadata key {key[:80]!r} has the unknown type {kind}")
        return self._scalar(kind)

    def _skip_array(self, key: str) -> ArrayLength:
        kind = int(self._scalar(4))
        count = self._count(MAX_HEADER_BYTES, f"elements in {key[:80]!r}")
        if kind == _STRING:
            for _ in range(count):  # each takes at least eight bytes of the file, so this ends
                self._string(f"an element of {key[:80]!r}")
        elif kind in _SCALARS:
            self._skip(count * struct.calcsize(_SCALARS[kind]), f"the array {key[:80]!r}")
        else:
            raise self._fault(f"the array {key[:80]!r} has elements of the unsupported type {kind}")
        return ArrayLength(count)

    def _fault(self, what: str) -> ModelConfigInvalid:
        return ModelConfigInvalid("model", f"the GGUF file {self._name!r} is malformed: {what}")
