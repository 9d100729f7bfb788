"""Safetensors headers: what a stranger's file says is believed only as far as it can be checked."""

from __future__ import annotations

import json
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from ordering_svc.allowed_roots import AllowedRoots
from ordering_svc.domain.headers import FaultKind, TensorHeader
from ordering_svc.file_headers.files import UnreadableFile
from ordering_svc.file_headers.safetensors import read_safetensors_header
from tests.ordering_svc.small_world import header_of

SMALL_HEADER, SMALL_BYTES = header_of({"a": ("F32", (2, 2)), "b": ("BF16", (3,))})
SMALL = SMALL_HEADER + bytes(SMALL_BYTES)


def read(content: bytes, folder: Path) -> dict[str, TensorHeader]:
    path = folder / "t.safetensors"
    path.write_bytes(content)
    return read_safetensors_header(path, "t.safetensors", AllowedRoots([folder], "--adapter-root"))


def with_header(text: bytes, tensors: int = 0) -> bytes:
    return struct.pack("<Q", len(text)) + text + bytes(tensors)


def entry(**keys: Any) -> bytes:
    value = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} | keys
    return with_header(json.dumps({"a": value}).encode(), 4)


def test_a_file_of_the_safetensors_library_is_read(tmp_path: Path) -> None:
    import torch

    tensors = {
        "x": torch.zeros(2, 3, dtype=torch.bfloat16),
        "y": torch.zeros(0),
        "z": torch.zeros((), dtype=torch.int64),
    }
    save_file(tensors, tmp_path / "own.safetensors", {"format": "pt"})
    found = read((tmp_path / "own.safetensors").read_bytes(), tmp_path)
    assert found == {
        "x": TensorHeader("BF16", (2, 3)),
        "y": TensorHeader("F32", (0,)),
        "z": TensorHeader("I64", ()),
    }


@pytest.mark.parametrize(
    "content",
    [
        b"",
        struct.pack("<Q", 2**63),
        struct.pack("<Q", 16 * 2**20) + b"{}",
        with_header(b"[]"),
        with_header(b"{"),
        with_header(b"\xff"),
        with_header(b'{"a": NaN}'),
        with_header(b"[" * 100_000),
        with_header(b'{"a":' * 50_000),
        with_header(b'{"a": {"dtype": "F32", "shape": [], "data_offsets": [0, 4]}, "a": 1}', 4),
        with_header(b'{"a": ' + b"9" * 5000 + b"}"),
        entry(dtype="F33"),
        entry(dtype=1),
        entry(shape=[True]),
        entry(shape=[-1]),
        entry(shape=[1.0]),
        entry(shape=[2**62, 2**62]),
        entry(shape=[0, 2**62]),
        entry(shape=[1] * 9),
        entry(shape="1"),
        entry(data_offsets=[0]),
        entry(data_offsets=[4, 0]),
        entry(data_offsets=[0, 8]),
        entry(data_offsets=[2**61, 2**61 + 4]),
        entry(more=1),
        SMALL + b"\0",
        with_header(json.dumps({n: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} for n in "ab"}).encode(), 4),
        with_header(json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}).encode(), 8),
    ],
)
def test_a_header_that_lies_is_malformed(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(UnreadableFile) as raised:
        read(content, tmp_path)
    assert raised.value.fault.kind is FaultKind.MALFORMED
    assert len(raised.value.fault.message) < 500


def test_a_file_cut_short_at_any_byte_is_malformed(tmp_path: Path) -> None:
    for length in range(len(SMALL)):
        with pytest.raises(UnreadableFile):
            read(SMALL[:length], tmp_path)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, len(SMALL_HEADER) * 8 - 1)), min_size=1, max_size=4))
def test_flipped_bits_never_lead_to_anything_but_a_typed_error(tmp_path: Path, bits: list[tuple[int]]) -> None:
    content = bytearray(SMALL)
    for (bit,) in bits:
        content[bit // 8] ^= 1 << bit % 8
    try:
        tensors = read(bytes(content), tmp_path)
    except UnreadableFile:
        pass  # the typed error
    else:
        assert all(isinstance(tensor, TensorHeader) for tensor in tensors.values())


@pytest.mark.parametrize("filling", [b"[],", b"{},", b"1,", b'"",'])
def test_a_header_full_of_small_values_takes_little_memory(tmp_path: Path, filling: bytes) -> None:
    text = b'{"a": [' + filling * (15 * 2**20 // len(filling)) + b"0]}"
    tracemalloc.start()
    with pytest.raises(UnreadableFile):
        read(with_header(text), tmp_path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 64 * 2**20
