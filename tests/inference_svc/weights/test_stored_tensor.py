"""Tensors whose data is given back and read again: the same rows, whichever way they are asked for."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from inference_svc.weights.gguf import GgufFile
from inference_svc.weights.quantization import QuantizedTensor

ROWS, COLUMNS = 23, 64


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> GgufFile:
    path = tmp_path_factory.mktemp("stored") / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    dense = np.random.default_rng(0).standard_normal((ROWS, COLUMNS), dtype=np.float32)
    for name in ("F32", "Q4_1"):
        kind = gguf.GGMLQuantizationType[name]
        writer.add_tensor(name, gguf.quants.quantize(dense, kind), raw_dtype=kind)
    writer.add_tensor("experts", dense[:20].reshape(4, 5, COLUMNS))
    writer.add_tensor("vector", dense[0])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return GgufFile.open(path)


def assert_same(left: QuantizedTensor, right: QuantizedTensor) -> None:
    assert left.shape == right.shape
    assert left.quantization is right.quantization
    assert left.nbytes == right.nbytes == right.data.numel()
    assert left.device == right.device
    assert left.data.equal(right.data)


@pytest.mark.parametrize("name", ["F32", "Q4_1", "experts", "vector"])
def test_released_data_is_read_again(opened: GgufFile, name: str) -> None:
    kept, released = opened.tensor(name), opened.tensor(name)
    released.release()
    assert kept.is_resident
    assert not released.is_resident
    assert_same(released, kept)
    assert not released.is_resident
    assert_same(released.resident(), kept)
    assert released.resident().is_resident
    assert_same(released.to(torch.device("cpu")), kept)


@given(
    st.sampled_from(["F32", "Q4_1"]),
    st.lists(
        st.lists(st.integers(0, ROWS - 1), max_size=40) | st.tuples(st.integers(0, ROWS), st.integers(0, 50)),
        max_size=4,
    ),
    st.data(),
)
def test_rows_of_released_data_are_those_of_resident_data(
    opened: GgufFile, name: str, steps: list[list[int] | tuple[int, int]], data: st.DataObject
) -> None:
    kept, released, given_back = opened.tensor(name), opened.entries[name].unread(), opened.tensor(name)
    for step in steps:
        if isinstance(step, tuple):
            first, count = min(step[0], kept.shape[0]), step[1]
            kept, released, given_back = (tensor.part(first, count) for tensor in (kept, released, given_back))
        else:
            rows = torch.tensor([row % kept.shape[0] for row in step] if kept.shape[0] else [], dtype=torch.int64)
            kept, released, given_back = (tensor.take_rows(rows) for tensor in (kept, released, given_back))
    given_back.release()
    assert_same(released, kept)
    assert_same(given_back, kept)
    if kept.shape[0]:
        rows = torch.tensor(data.draw(st.lists(st.integers(0, kept.shape[0] - 1), max_size=8)), dtype=torch.int64)
        assert released.dequantize_rows(rows).equal(kept.dequantize_rows(rows))
    assert not released.is_resident


def test_data_that_is_nowhere_else_is_not_given_back() -> None:
    tensor = QuantizedTensor(torch.ones((2, 4), dtype=torch.uint8), gguf.GGMLQuantizationType.F32, (2, 1))
    tensor.release()
    assert tensor.is_resident
    assert tensor.data.sum() == 8


def test_the_axes_before_the_last_are_rows(opened: GgufFile) -> None:
    experts = opened.tensor("experts")
    assert experts.shape == (20, COLUMNS)
    assert opened.entries["experts"].shape == (4, 5, COLUMNS)
    assert experts.part(5, 5).dequantize().equal(opened.tensor("F32").dequantize()[5:10])
    assert opened.tensor("vector").shape == (1, COLUMNS)
