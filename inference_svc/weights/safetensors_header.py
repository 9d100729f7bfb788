"""Reads a safetensors file and believes nothing that its header says unchecked.

Format (https://github.com/huggingface/safetensors#format): 8 bytes with the length of the header, little-endian; the
header, JSON of name -> dtype, shape, data_offsets; the tensors. The rules are those of its Rust reader, and more.
"""

from __future__ import annotations

import math
import os
import reprlib
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch

from inference_svc.weights.errors import FileChanged, FileMissing, MalformedFile, UnsupportedFile
from inference_svc.weights.json_object import parse_json_object

MAX_HEADER_BYTES = 16 << 20
MAX_TENSORS = 100_000
BRACKETS_IN_TEXTS = 10_000  # in names and free text; each tensor has three more
MAX_DIMENSIONS = 8
MAX_SIZE = 1 << 63  # of one axis: what torch can count to

_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_WHOLE_DTYPES = ("BOOL", "U8", "I8", "U16", "I16", "U32", "I32", "U64", "I64")
_SMALL_DTYPES = ("F4", "F6_E2M3", "F6_E3M2", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ")
_OTHER_DTYPES = frozenset((*_WHOLE_DTYPES, *_SMALL_DTYPES, "F64", "C64"))


@dataclass(frozen=True, slots=True)
class SafetensorsEntry:
    """Where a tensor lies in the file."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int  # from the start of the file
    nbytes: int


Observer = Callable[[bytes | memoryview], object]


@dataclass(frozen=True, slots=True)
class HeaderLimits:
    """How large a header may be: the interpreter is held while it is parsed."""

    max_bytes: int = MAX_HEADER_BYTES
    max_tensors: int = MAX_TENSORS


MODEL_LIMITS = HeaderLimits()


def read_tensors(
    path: Path, on_bytes: Observer | None = None, limits: HeaderLimits = MODEL_LIMITS
) -> dict[str, torch.Tensor]:
    """All tensors of a file, copied into memory: nothing changes when the file does.

    Args:
        path: the file.
        on_bytes: sees every byte of the file once, in order and as it was read: what a digest is made from.
        limits: of the header.

    Raises:
        FileMissing: there is no such file, or it cannot be read.
        MalformedFile: it is truncated, or the header does not fit the format or the file.
        UnsupportedFile: a tensor is not of F32, F16 or BF16.
    """
    try:
        # A pipe would block the open: look first.
        if not stat.S_ISREG(path.stat().st_mode):
            raise FileMissing(str(path), "is not a file")
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            entries = read_safetensors_header(str(path), file, size, on_bytes, limits)
            return {entry.name: _read_tensor(path, file, entry, on_bytes) for entry in entries}
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise FileMissing(str(path), f"cannot be read: {reason}") from error


def read_safetensors_header(
    path: str, file: BinaryIO, size: int, on_bytes: Observer | None = None, limits: HeaderLimits = MODEL_LIMITS
) -> list[SafetensorsEntry]:
    """Parse and check the header of a file of `size` bytes; the entries are in the order of their bytes.

    Raises:
        MalformedFile, UnsupportedFile: see read_tensors.
    """
    if size < 8:
        raise _malformed(path, f"it has {size} bytes, the length of the header alone takes 8: it is truncated")
    prefix = file.read(8)
    length = int.from_bytes(prefix, "little")
    if length > limits.max_bytes:
        raise _malformed(path, f"the header claims {length} bytes, more than the {limits.max_bytes} allowed")
    if length > size - 8:
        raise _malformed(path, f"the header claims {length} bytes and {size - 8} are left: it is truncated")
    text = file.read(length)
    if on_bytes is not None:
        on_bytes(prefix + text)
    if text.count(b"[") + text.count(b"{") > 3 * limits.max_tensors + BRACKETS_IN_TEXTS:
        raise _malformed(path, f"the header has more objects and lists than {limits.max_tensors} tensors need")
    header = _parsed(path, text)
    header.pop("__metadata__", None)  # free text, of no use here
    if len(header) > limits.max_tensors:
        raise _malformed(path, f"it holds {len(header)} tensors, more than the {limits.max_tensors} allowed")
    entries = [_entry(path, name, value, 8 + length) for name, value in header.items()]
    entries.sort(key=lambda entry: (entry.offset, entry.nbytes))
    end = 8 + length
    for entry in entries:
        if entry.offset != end:
            fault = "overlaps the one before it" if entry.offset < end else "leaves a hole before it"
            raise _malformed(path, f"tensor {_short(entry.name)} at byte {entry.offset} {fault}, expected byte {end}")
        end += entry.nbytes
    if end > size:
        raise _malformed(path, f"the tensors end at byte {end} and the file at byte {size}: it is truncated")
    if end < size:
        raise _malformed(path, f"the tensors end at byte {end} and {size - end} bytes follow")
    return entries


def _parsed(path: str, text: bytes) -> dict[str, object]:
    try:
        return parse_json_object(text)
    except ValueError as error:
        raise _malformed(path, f"the header {error}") from error


def _entry(path: str, name: str, value: object, start: int) -> SafetensorsEntry:
    label = f"tensor {_short(name)}"
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise _malformed(path, f"{label} is {_short(value)}, expected an object of dtype, shape and data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or (dtype not in _DTYPES and dtype not in _OTHER_DTYPES):
        raise _malformed(path, f"{label} has the unknown dtype {_short(dtype)}")
    if dtype not in _DTYPES:
        raise UnsupportedFile(path, f"{label} is of dtype {dtype}: {', '.join(_DTYPES)} are supported")
    if not _are_sizes(shape) or len(shape) > MAX_DIMENSIONS:
        raise _malformed(path, f"{label} has the shape {_short(shape)}, expected up to {MAX_DIMENSIONS} whole numbers")
    if math.prod(max(size, 1) for size in shape) >= MAX_SIZE:  # with a 0 among them it would fit any file
        raise _malformed(path, f"{label} has the shape {_short(shape)}, more than anything can hold")
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise _malformed(path, f"{label} has the data_offsets {_short(offsets)}, expected [begin, end]")
    nbytes = offsets[1] - offsets[0]
    expected = math.prod(shape) * _DTYPES[dtype].itemsize  # Python integers do not wrap around
    if expected != nbytes:
        raise _malformed(path, f"{label} of shape {shape} and dtype {dtype} takes {expected} bytes, not {nbytes}")
    return SafetensorsEntry(name, _DTYPES[dtype], tuple(shape), start + offsets[0], nbytes)


def _are_sizes(value: object) -> bool:
    """JSON's `true` and `1.0` are no sizes."""
    return isinstance(value, list) and all(type(item) is int and 0 <= item < MAX_SIZE for item in value)


def _read_tensor(path: Path, file: BinaryIO, entry: SafetensorsEntry, on_bytes: Observer | None) -> torch.Tensor:
    tensor = torch.empty(entry.shape, dtype=entry.dtype)
    if not entry.nbytes:
        return tensor
    file.seek(entry.offset)
    # Straight into the tensor's memory: no second copy.
    content = tensor.view(-1).view(torch.uint8).numpy().data
    count = file.readinto(content)  # type: ignore[attr-defined]
    if count != entry.nbytes:
        raise FileChanged(str(path), f"tensor {_short(entry.name)} is cut off: the file changed while it was read")
    if on_bytes is not None:
        on_bytes(content)
    return tensor


def _short(value: object) -> str:
    """A file's own words may be megabytes long; a message is not."""
    return reprlib.repr(value)


def _malformed(path: str, message: str) -> MalformedFile:
    return MalformedFile(path, f"malformed safetensors: {message}")
