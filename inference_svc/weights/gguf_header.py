"""Reads the header of a GGUF file (versions 2 and 3, little-endian) and believes nothing that it says unchecked.

Every length is compared with what is left of the file before anything is allocated, so a file can never make the
reader use more memory than a small multiple of its own size. Format: the GGUF specification of the ggml project.
"""

from __future__ import annotations

import reprlib
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType

from inference_svc.weights.errors import MalformedFile, UnsupportedFile

MetadataValue = int | float | bool | str | list[int] | list[float] | list[bool] | list[str]

MAX_KEY_BYTES = 65_535
MAX_DIMENSIONS = 4
MAX_ALIGNMENT = 1 << 20
MAX_ENTRIES = 1 << 17  # of metadata keys, and of tensors
LEGACY_MAGICS = (b"lmgg", b"fmgg", b"tjgg", b"algg")  # ggml, ggmf, ggjt, ggla: stored little-endian

_SCALARS = {
    GGUFValueType.UINT8: "B",
    GGUFValueType.INT8: "b",
    GGUFValueType.UINT16: "H",
    GGUFValueType.INT16: "h",
    GGUFValueType.UINT32: "I",
    GGUFValueType.INT32: "i",
    GGUFValueType.UINT64: "Q",
    GGUFValueType.INT64: "q",
    GGUFValueType.FLOAT32: "f",
    GGUFValueType.FLOAT64: "d",
    GGUFValueType.BOOL: "?",
}


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """Where a tensor lies in the file."""

    name: str
    shape: tuple[int, ...]  # slowest axis first, as in torch: (out_features, in_features)
    quantization: GGMLQuantizationType
    offset: int  # from the start of the file
    nbytes: int


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """Everything before the tensor data."""

    metadata: dict[str, MetadataValue]
    tensors: dict[str, TensorEntry]


class FileBytes(Protocol):
    """A file that is read from its start, as far as is needed."""

    @property
    def size(self) -> int:
        """Bytes of the whole file."""
        ...

    def prefix(self, count: int) -> memoryview:
        """At least its first `count` bytes; it has so many. Raises WeightsError."""
        ...


class _Cursor:
    """A position in the file's bytes; reading past the end is a MalformedFile."""

    def __init__(self, path: str, file: FileBytes) -> None:
        self.path = path
        self.file = file
        self.size = file.size
        self.data = memoryview(b"")
        self.position = 0

    def malformed(self, message: str) -> MalformedFile:
        return MalformedFile(self.path, f"malformed GGUF: {message}")

    def take(self, count: int, what: str) -> memoryview:
        left = self.size - self.position
        if count > left:
            raise self.malformed(f"{what} at byte {self.position} needs {count} bytes and {left} are left")
        piece = self.reach(self.position + count)[self.position : self.position + count]
        self.position += count
        return piece

    def reach(self, end: int) -> memoryview:
        """The bytes up to `end`, which lies in the file, and maybe more."""
        if end > len(self.data):
            self.data = self.file.prefix(end)
        return self.data

    def scalar(self, code: str, what: str) -> int | float | bool:
        value: int | float | bool = struct.unpack("<" + code, self.take(struct.calcsize("<" + code), what))[0]
        return value

    def count(self, code: str, what: str, limit: int) -> int:
        value = int(self.scalar(code, what))
        if value > limit:
            raise self.malformed(f"{what} is {value}, more than the {limit} allowed")
        return value

    def string(self, what: str, limit: int | None = None) -> str:
        length = int(self.scalar("Q", f"length of {what}"))
        if limit is not None and length > limit:
            raise self.malformed(f"{what} has {length} bytes, more than the {limit} allowed")
        try:
            return str(self.take(length, what), "utf-8")
        except UnicodeDecodeError as error:
            raise self.malformed(f"{what} is not UTF-8: {error}") from error


def read_header(path: str, file: FileBytes) -> GgufHeader:
    """Parse and check the header of a file.

    Raises:
        MalformedFile: a value does not fit the file or the format.
        UnsupportedFile: a legacy GGML file, a big-endian one, another version, or a tensor type that is not known.
    """
    cursor = _Cursor(path, file)
    magic = bytes(cursor.take(4, "the magic"))
    if magic in LEGACY_MAGICS:
        raise UnsupportedFile(
            path,
            f"a legacy GGML file ({magic[::-1].decode()}): convert it to GGUF with llama.cpp's "
            "`convert_llama_ggml_to_gguf.py --input OLD --output NEW.gguf`",
        )
    if magic != b"GGUF":
        raise cursor.malformed(f"it starts with {magic!r}, not b'GGUF'")
    version = int(cursor.scalar("I", "the version"))
    if version not in (2, 3):
        hint = " (big-endian?)" if version & 0xFFFF == 0 and version else ""
        raise UnsupportedFile(path, f"GGUF version {version}{hint}: versions 2 and 3, little-endian, are supported")
    num_tensors = cursor.count("Q", "the number of tensors", MAX_ENTRIES)
    num_keys = cursor.count("Q", "the number of metadata keys", MAX_ENTRIES)
    metadata: dict[str, MetadataValue] = {}
    for index in range(num_keys):
        key = cursor.string(f"metadata key {index}", MAX_KEY_BYTES)
        if key in metadata:
            raise cursor.malformed(f"metadata key {key!r} stands twice")
        metadata[key] = _value(cursor, _value_type(cursor, key), key)
    infos = [_tensor_info(cursor, index) for index in range(num_tensors)]
    alignment = metadata.get("general.alignment", 32)
    is_valid = isinstance(alignment, int) and not isinstance(alignment, bool) and 0 < alignment <= MAX_ALIGNMENT
    if not is_valid or alignment & (alignment - 1):  # type: ignore[operator]
        raise cursor.malformed(
            f"general.alignment is {reprlib.repr(alignment)}, not a power of two up to {MAX_ALIGNMENT}"
        )
    assert isinstance(alignment, int)
    start = -(-cursor.position // alignment) * alignment
    return GgufHeader(metadata, _placed(cursor, infos, start, alignment))


def _value_type(cursor: _Cursor, key: str) -> GGUFValueType:
    number = int(cursor.scalar("I", f"the type of {key!r}"))
    try:
        return GGUFValueType(number)
    except ValueError as error:
        raise cursor.malformed(f"metadata key {key!r} has the unknown type {number}") from error


def _value(cursor: _Cursor, kind: GGUFValueType, key: str) -> MetadataValue:
    if kind is GGUFValueType.STRING:
        return cursor.string(f"the value of {key!r}")
    if kind is not GGUFValueType.ARRAY:
        return cursor.scalar(_SCALARS[kind], f"the value of {key!r}")
    item = _value_type(cursor, key)
    count = int(cursor.scalar("Q", f"the length of {key!r}"))
    if item is GGUFValueType.ARRAY:
        raise cursor.malformed(f"metadata key {key!r} is an array of arrays")
    if item is GGUFValueType.STRING:
        # A string takes at least the 8 bytes of its length.
        if count * 8 > cursor.size - cursor.position:
            raise cursor.malformed(f"metadata key {key!r} claims {count} strings, more than the file can hold")
        return _strings(cursor, count, key)
    size = struct.calcsize("<" + _SCALARS[item])
    return list(struct.unpack(f"<{count}{_SCALARS[item]}", cursor.take(count * size, f"the values of {key!r}")))


def _strings(cursor: _Cursor, count: int, key: str) -> list[str]:
    """A loop without calls: vocabularies have hundreds of thousands of strings."""
    data, position, have, end = cursor.data, cursor.position, len(cursor.data), cursor.size
    unpack: Callable[[memoryview, int], tuple[int]] = struct.Struct("<Q").unpack_from
    texts = []
    for index in range(count):
        if position + 8 > end:
            raise cursor.malformed(f"item {index} of {key!r} at byte {position} is cut off")
        if position + 8 > have:
            data = cursor.reach(position + 8)
            have = len(data)
        stop = position + 8 + unpack(data, position)[0]
        if stop > end:
            raise cursor.malformed(f"item {index} of {key!r} at byte {position} reaches past the end of the file")
        if stop > have:
            data = cursor.reach(stop)
            have = len(data)
        texts.append(bytes(data[position + 8 : stop]))
        position = stop
    cursor.position = position
    try:
        return [text.decode() for text in texts]
    except UnicodeDecodeError as error:
        raise cursor.malformed(f"an item of {key!r} is not UTF-8: {error}") from error


def _tensor_info(cursor: _Cursor, index: int) -> TensorEntry:
    """An entry whose offset still counts from the start of the tensor data."""
    name = cursor.string(f"the name of tensor {index}", MAX_KEY_BYTES)
    num_dimensions = cursor.count("I", f"the number of dimensions of tensor {name!r}", MAX_DIMENSIONS)
    dimensions = [int(cursor.scalar("Q", f"a dimension of tensor {name!r}")) for _ in range(num_dimensions)]
    number = int(cursor.scalar("I", f"the type of tensor {name!r}"))
    offset = int(cursor.scalar("Q", f"the offset of tensor {name!r}"))
    try:
        quantization = GGMLQuantizationType(number)
    except ValueError as error:
        raise UnsupportedFile(cursor.path, f"tensor {name!r} has the unknown type {number}") from error
    if not dimensions or 0 in dimensions:
        raise cursor.malformed(f"tensor {name!r} has the shape {tuple(reversed(dimensions))}")
    block, block_bytes = GGML_QUANT_SIZES[quantization]
    if dimensions[0] % block:
        raise cursor.malformed(
            f"tensor {name!r} has rows of {dimensions[0]} values, not a multiple of {block} ({quantization.name})"
        )
    nbytes = dimensions[0] // block * block_bytes
    for dimension in dimensions[1:]:  # Python integers do not wrap around
        nbytes *= dimension
    return TensorEntry(name, tuple(reversed(dimensions)), quantization, offset, nbytes)


def _placed(cursor: _Cursor, infos: list[TensorEntry], start: int, alignment: int) -> dict[str, TensorEntry]:
    """The entries with offsets from the start of the file, checked against the file's size and each other."""
    tensors: dict[str, TensorEntry] = {}
    for info in infos:
        if info.name in tensors:
            raise cursor.malformed(f"tensor {info.name!r} stands twice")
        if info.offset % alignment:
            raise cursor.malformed(f"tensor {info.name!r} is at offset {info.offset}, not a multiple of {alignment}")
        offset = start + info.offset
        if offset + info.nbytes > cursor.size:
            raise cursor.malformed(
                f"tensor {info.name!r} ends at byte {offset + info.nbytes} and the file at byte {cursor.size}: "
                "it is truncated"
            )
        tensors[info.name] = TensorEntry(info.name, info.shape, info.quantization, offset, info.nbytes)
    end, before = 0, ""
    for entry in sorted(tensors.values(), key=lambda e: e.offset):
        if entry.offset < end:
            raise cursor.malformed(f"tensors {before!r} and {entry.name!r} overlap")
        end, before = entry.offset + entry.nbytes, entry.name
    return tensors
