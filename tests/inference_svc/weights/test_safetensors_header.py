"""safetensors files that are truncated, changed or lie: each is a typed error, quickly and in little memory."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load, save, save_file

from inference_svc.weights.errors import FileMissing, MalformedFile, UnsupportedFile, WeightsError
from inference_svc.weights.safetensors_header import HeaderLimits, read_tensors

TENSORS = {
    "a.lora_A.weight": torch.arange(6, dtype=torch.float32).reshape(2, 3),
    "a.lora_B.weight": torch.arange(4, dtype=torch.bfloat16).reshape(4, 1),
    "b": torch.tensor([1.5, -2.0, 65504.0], dtype=torch.float16),
}


def file_of(header: object, data: bytes = b"") -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + data


def tensor(dtype: object = "F32", shape: object = (1,), offsets: object = (0, 4)) -> Mapping[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def read(folder: Path, content: bytes) -> dict[str, torch.Tensor]:
    path = folder / "adapter.safetensors"
    path.write_bytes(content)
    return read_tensors(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("safetensors")


def test_a_valid_file_is_read_as_it_was_saved(tmp_path: Path) -> None:
    path = tmp_path / "adapter.safetensors"
    save_file(TENSORS, path, metadata={"format": "pt"})
    read_back = read_tensors(path)
    assert read_back.keys() == TENSORS.keys()
    for name, expected in TENSORS.items():
        assert read_back[name].dtype is expected.dtype
        assert torch.equal(read_back[name], expected)


def test_tensors_stay_when_the_file_is_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "adapter.safetensors"
    save_file(TENSORS, path)
    read_back = read_tensors(path)
    with path.open("r+b") as file:
        file.write(b"\xff" * path.stat().st_size)
    assert torch.equal(read_back["b"], TENSORS["b"])


def test_no_tensors_and_empty_tensors_are_sound(folder: Path) -> None:
    assert read(folder, file_of({})) == {}
    content = file_of({"e": tensor(shape=[0, 3], offsets=[0, 0]), "f": tensor()}, b"\0\0\x80\x3f")
    read_back = read(folder, content)
    assert read_back["e"].shape == (0, 3)
    assert read_back["f"].tolist() == [1.0]


def test_a_scalar_is_read(folder: Path) -> None:
    assert read(folder, file_of({"s": tensor(shape=[])}, b"\0\0\x80\x3f"))["s"].item() == 1.0


def test_a_file_cut_off_anywhere_is_malformed(folder: Path) -> None:
    content = save(TENSORS)
    for length in range(len(content)):
        with pytest.raises(MalformedFile):
            read(folder, content[:length])


@given(data=st.data())
def test_changed_header_bytes_are_refused_or_read_as_the_safetensors_package_does(
    folder: Path, data: st.DataObject
) -> None:
    content = bytearray(save(TENSORS))
    header_end = 8 + int.from_bytes(content[:8], "little")
    positions = st.integers(0, header_end - 1)
    for position, value in data.draw(st.lists(st.tuples(positions, st.integers(0, 255)), min_size=1, max_size=4)):
        content[position] = value
    _is_refused_or_the_same(folder, bytes(content))


def test_every_header_byte_of_telling_values_is_refused_or_read_alike(folder: Path) -> None:
    content = bytearray(save({"a": TENSORS["b"]}))
    original = bytes(content)
    for position in range(8 + int.from_bytes(content[:8], "little")):
        for value in (0, 0x20, 0x22, 0x2C, 0x30, 0x39, 0x7B, 0xFF, original[position] ^ 1):
            content[position] = value
            _is_refused_or_the_same(folder, bytes(content))
        content[position] = original[position]


def _is_refused_or_the_same(folder: Path, content: bytes) -> None:
    try:
        ours = read(folder, content)
    except WeightsError:
        return
    theirs = load(content)
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        assert ours[name].dtype is expected.dtype
        assert torch.equal(ours[name].view(-1).view(torch.uint8), expected.view(-1).view(torch.uint8))


FOUR = b"\0" * 4


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(b"", "0 bytes", id="empty"),
        pytest.param(struct.pack("<Q", 1 << 63) + FOUR, "more than the 16777216 allowed", id="header-2^63"),
        pytest.param(struct.pack("<Q", (16 << 20) + 1), "more than the 16777216 allowed", id="header-too-long"),
        pytest.param(struct.pack("<Q", 100) + b"{}", "claims 100 bytes", id="header-past-the-end"),
        pytest.param(file_of(b""), "cannot be read", id="no-header"),
        pytest.param(file_of(b"{"), "cannot be read", id="not-json"),
        pytest.param(file_of(b'{"\xff": 1}'), "cannot be read", id="not-utf-8"),
        pytest.param(file_of(b"[" * 200_000), "nested too deeply", id="deep-list"),
        pytest.param(file_of(b'{"a":' * 100_000), "nested too deeply", id="deep-object"),
        pytest.param(file_of([]), "not a JSON object", id="a-list"),
        pytest.param(file_of(b'{"a":' + b"1" * 5000 + b"}"), "cannot be read", id="number-of-5000-digits"),
        pytest.param(
            file_of(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{}}', FOUR),
            "'a' stands twice",
            id="tensor-twice",
        ),
        pytest.param(
            file_of(b'{"a":{"dtype":"F32","dtype":"F16","shape":[1],"data_offsets":[0,4]}}', FOUR),
            "'dtype' stands twice",
            id="key-twice",
        ),
        pytest.param(file_of({"a": 1}), "tensor 'a' is 1", id="not-an-object"),
        pytest.param(file_of({"a": {"dtype": "F32", "shape": [1]}}, FOUR), "data_offsets", id="offsets-missing"),
        pytest.param(file_of({"a": {**tensor(), "x": 1}}, FOUR), "expected an object", id="unknown-key"),
        pytest.param(file_of({"a": tensor("F99")}, FOUR), "unknown dtype 'F99'", id="unknown-dtype"),
        pytest.param(file_of({"a": tensor(["F32"])}, FOUR), "unknown dtype", id="dtype-is-a-list"),
        pytest.param(file_of({"a": tensor(shape=[-1])}, FOUR), "shape", id="negative-shape"),
        pytest.param(file_of({"a": tensor(shape=[1.0])}, FOUR), "shape", id="float-shape"),
        pytest.param(file_of({"a": tensor(shape=[True])}, FOUR), "shape", id="bool-shape"),
        pytest.param(file_of({"a": tensor(shape="1")}, FOUR), "shape", id="string-shape"),
        pytest.param(file_of({"a": tensor(shape=[1] * 9)}, FOUR), "shape", id="nine-axes"),
        pytest.param(file_of({"a": tensor(shape=[1 << 32] * 2)}, FOUR), "shape", id="product-2^64"),
        pytest.param(file_of({"a": tensor(shape=[1 << 62])}, FOUR), "takes", id="bytes-2^64"),
        pytest.param(file_of({"a": tensor(shape=[0, 1 << 62, 1 << 62], offsets=[0, 0])}), "shape", id="huge-and-empty"),
        pytest.param(file_of({"a": tensor(shape=[2])}, FOUR), "takes 8 bytes, not 4", id="shape-too-large"),
        pytest.param(file_of({"a": tensor("F16")}, FOUR), "takes 2 bytes, not 4", id="shape-too-small"),
        pytest.param(file_of({"a": tensor(offsets=[4, 0])}, FOUR), "data_offsets", id="offsets-backwards"),
        pytest.param(file_of({"a": tensor(offsets=[-4, 0])}, FOUR), "data_offsets", id="offsets-negative"),
        pytest.param(file_of({"a": tensor(offsets=[0, 4, 8])}, FOUR), "data_offsets", id="three-offsets"),
        pytest.param(file_of({"a": tensor(offsets=[4, 8])}, FOUR * 2), "hole", id="hole-at-the-start"),
        pytest.param(
            file_of({"a": tensor(), "b": tensor(offsets=[8, 12])}, FOUR * 3), "tensor 'b' .*hole", id="hole-between"
        ),
        pytest.param(file_of({"a": tensor(), "b": tensor()}, FOUR), "overlaps", id="at-the-same-place"),
        pytest.param(
            file_of({"a": tensor(), "b": tensor(offsets=[2, 6])}, FOUR * 2), "tensor 'b' .*overlaps", id="overlapping"
        ),
        pytest.param(file_of({"a": tensor()}, b"\0" * 3), "truncated", id="data-cut-off"),
        pytest.param(file_of({"a": tensor()}, b"\0" * 5), "1 bytes follow", id="data-left-over"),
    ],
)
def test_a_lying_file_is_malformed(folder: Path, content: bytes, message: str) -> None:
    with pytest.raises(MalformedFile, match=message) as caught:
        read(folder, content)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("dtype", ["I8", "I64", "F64", "BOOL", "F8_E4M3"])
def test_a_dtype_that_no_adapter_has_is_unsupported_by_name(folder: Path, dtype: str) -> None:
    with pytest.raises(UnsupportedFile, match=f"tensor 'a' is of dtype {dtype}: F32, F16, BF16 are supported"):
        read(folder, file_of({"a": tensor(dtype)}, FOUR))


def test_a_header_beyond_its_limits_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "adapter.safetensors"
    three = file_of({name: tensor(shape=[0], offsets=[0, 0]) for name in "abc"})
    lists = file_of({"a": [[]] * 20_000})
    for content, limits, said in (
        (three, HeaderLimits(max_tensors=2), "3 tensors, more than the 2 allowed"),
        (three, HeaderLimits(max_bytes=20), "more than the 20 allowed"),
        (lists, HeaderLimits(max_tensors=3000), "more objects and lists than 3000 tensors need"),
    ):
        path.write_bytes(content)
        with pytest.raises(MalformedFile, match=said):
            read_tensors(path, limits=limits)


def test_a_long_name_makes_no_long_message(folder: Path) -> None:
    with pytest.raises(UnsupportedFile) as caught:
        read(folder, file_of({"n" * 1_000_000: tensor("I32")}, FOUR))
    assert len(str(caught.value)) < 1000


def test_what_is_not_a_file_is_missing(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (tmp_path / "nothing", tmp_path, pipe, tmp_path / ("x" * 300), tmp_path / "nul\0"):
        with pytest.raises(FileMissing):
            read_tensors(path)
