"""The header of a safetensors file, checked against the file; the tensors are not read.

Format (https://github.com/huggingface/safetensors#format): eight bytes with the length of the header, little-endian;
the header, JSON of name -> dtype, shape, data_offsets; the tensors, without holes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TypeGuard

from ordering_svc.allowed_roots import AllowedRoots
from ordering_svc.domain.headers import TensorHeader
from ordering_svc.domain.problems import shown
from ordering_svc.file_headers.files import UnreadableFile, malformed, opened
from ordering_svc.file_headers.json_object import parsed_object

MAX_HEADER_BYTES = 16 * 2**20
MAX_TENSORS = 100_000
MAX_DIMENSIONS = 8
_MARKS_OF_A_TENSOR = 12 + MAX_DIMENSIONS  # brackets, colons and commas that one entry needs at most
_LARGEST_OFFSET = 2**62

DTYPE_BITS: Mapping[str, int] = (
    dict.fromkeys(("F4",), 4)
    | dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6)
    | dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8)
    | dict.fromkeys(("U16", "I16", "F16", "BF16"), 16)
    | dict.fromkeys(("U32", "I32", "F32"), 32)
    | dict.fromkeys(("U64", "I64", "F64", "C64"), 64)
)


def read_safetensors_header(path: Path, file: str, roots: AllowedRoots) -> dict[str, TensorHeader]:
    """The tensors of a file by name, in the order of the header.

    Raises:
        UnreadableFile: it is not there, or its header does not fit the format or the file.
    """
    with opened(path, file, roots) as (content, size):
        start = content.read(8)
        length = int.from_bytes(start, "little")
        if len(start) < 8:
            raise malformed(file, f"it has {len(start)} bytes, the length of its header alone takes 8")
        if length > MAX_HEADER_BYTES:
            raise malformed(file, f"its header claims {length} bytes, the limit is {MAX_HEADER_BYTES}")
        text = content.read(length) if length <= size - 8 else b""
    if len(text) < length:
        raise malformed(file, f"its header claims {length} bytes and {max(size - 8, 0)} follow: it is cut short")
    header = parsed_object(text, file, MAX_TENSORS * _MARKS_OF_A_TENSOR)
    header.pop("__metadata__", None)  # free text
    if len(header) > MAX_TENSORS:
        raise malformed(file, f"it claims {len(header)} tensors, the limit is {MAX_TENSORS}")
    tensors: dict[str, TensorHeader] = {}
    spans: list[tuple[int, int, str]] = []
    for name, value in header.items():
        tensors[name], begin, end = _entry(file, name, value)
        spans.append((begin, end, name))
    _check_spans(file, spans, size - 8 - length)
    return tensors


def _entry(file: str, name: str, value: object) -> tuple[TensorHeader, int, int]:
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise _wrong(file, name, "is no object of dtype, shape and data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise _wrong(file, name, f"has the unknown dtype `{shown(dtype)}`")
    if not _are_sizes(shape) or len(shape) > MAX_DIMENSIONS:
        raise _wrong(file, name, f"has the shape `{shown(shape)}`, expected at most {MAX_DIMENSIONS} whole numbers")
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise _wrong(file, name, f"has the data_offsets `{shown(offsets)}`, expected begin and end")
    begin, end = offsets
    if math.prod(shape) * DTYPE_BITS[dtype] != (end - begin) * 8:
        raise _wrong(file, name, f"of shape {shown(shape)} and dtype {dtype} does not take {end - begin} bytes")
    return TensorHeader(dtype, tuple(shape)), begin, end


def _check_spans(file: str, spans: list[tuple[int, int, str]], available: int) -> None:
    """One after the other, from the first byte to the last."""
    expected = 0
    for begin, end, name in sorted(spans):
        if begin != expected:
            what = "overlaps the one before it" if begin < expected else "leaves a hole before it"
            raise _wrong(file, name, f"begins at byte {begin} and {what}: expected {expected}")
        expected = end
    if expected != available:
        raise malformed(file, f"its tensors take {expected} bytes and {available} are there")


def _are_sizes(value: object) -> TypeGuard[list[int]]:
    """JSON's `true` and `1.0` are no sizes."""
    return isinstance(value, list) and all(type(item) is int and 0 <= item < _LARGEST_OFFSET for item in value)


def _wrong(file: str, name: str, what: str) -> UnreadableFile:
    return malformed(file, f"tensor `{shown(name)}` {what}")
