"""Dequantized weights equal the gguf package's to the bit, and transformers' where it reorders them."""

from __future__ import annotations

from pathlib import Path

import gguf
import gguf.quants
import numpy as np
import pytest
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from numpy.typing import NDArray
from transformers import PreTrainedModel

from inference_svc.models.loading import load_checkpoint
from inference_svc.weights.gguf import GgufFile
from inference_svc.weights.quantization import QuantizedTensor, is_supported
from tests.inference_svc.weights.packed_rows import PACKED_TYPES, random_rows

OWN = ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"]
OWN += ["IQ4_NL", "IQ4_XS"]
THROUGH_GGUF = [kind.name for kind in PACKED_TYPES if kind.name not in OWN]


def expected(data: NDArray[np.uint8], kind: GGMLQuantizationType) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(gguf.quants.dequantize(data, kind), dtype=np.float32))


def same_bits(left: torch.Tensor, right: torch.Tensor) -> bool:
    """NaN equals NaN here, and 0 is not -0."""
    return left.shape == right.shape and torch.equal(left.view(torch.int32), right.view(torch.int32))


def packed(name: str, rows: int, columns: int) -> QuantizedTensor:
    kind = GGMLQuantizationType[name]
    if kind in PACKED_TYPES:
        data = random_rows(kind, rows, columns, seed=len(name) + rows)
    else:
        values = np.random.default_rng(rows).standard_normal((rows, columns), dtype=np.float32) * 3
        data = gguf.quants.quantize(values, kind).view(np.uint8).reshape(rows, -1)
    return QuantizedTensor(torch.from_numpy(data.copy()), kind, (rows, columns))


@pytest.fixture(scope="module")
def reader(smollm2_gguf: Path) -> gguf.GGUFReader:
    return gguf.GGUFReader(smollm2_gguf)


def test_every_tensor_of_the_real_file_is_equal_to_the_bit(smollm2_gguf: Path, reader: gguf.GGUFReader) -> None:
    ours = GgufFile.open(smollm2_gguf)
    theirs = reader.tensors
    assert ours.entries.keys() == {tensor.name for tensor in theirs}
    assert {tensor.tensor_type.name for tensor in theirs} >= {"F32", "Q4_1"}
    for tensor in theirs:
        dense = expected(np.array(tensor.data), tensor.tensor_type)  # a copy: the file is read-only
        mine = ours.tensor(tensor.name).dequantize()
        assert same_bits(mine.reshape(ours.entries[tensor.name].shape), dense), tensor.name


def test_the_metadata_of_the_real_file_is_what_the_gguf_package_reads(
    smollm2_gguf: Path, reader: gguf.GGUFReader
) -> None:
    ours = GgufFile.open(smollm2_gguf).metadata
    theirs = reader.fields
    assert {*ours} == {name for name in theirs if not name.startswith("GGUF.")}
    for name, value in ours.items():
        assert value == theirs[name].contents(), name


@pytest.mark.parametrize("name", OWN + THROUGH_GGUF)
@pytest.mark.parametrize(("rows", "columns"), [(1, 256), (7, 512), (33, 1536)])
def test_quantized_values_are_equal_to_the_bit(name: str, rows: int, columns: int) -> None:
    tensor = packed(name, rows, columns)
    dense = tensor.dequantize()
    assert dense.dtype is torch.float32
    assert same_bits(dense, expected(tensor.data.numpy(), tensor.quantization))


@pytest.mark.parametrize("name", OWN[1:])
def test_any_bytes_mean_the_same_even_where_they_mean_no_number(name: str) -> None:
    kind = GGMLQuantizationType[name]
    block, width = GGML_QUANT_SIZES[kind]
    data = np.random.default_rng(1).integers(0, 256, (64, 64 * width), dtype=np.uint8)
    with np.errstate(all="ignore"):
        theirs = expected(data, kind)
    ours = QuantizedTensor(torch.from_numpy(data), kind, (64, 64 * block)).dequantize()
    assert theirs.isnan().any()
    assert torch.equal(ours.isnan(), theirs.isnan())  # which NaN it is, is up to the processor
    assert same_bits(ours.nan_to_num(nan=7.0), theirs.nan_to_num(nan=7.0))


@pytest.mark.parametrize("name", OWN + THROUGH_GGUF)
def test_rows_can_be_taken_packed_or_unpacked(name: str) -> None:
    tensor = packed(name, 9, 512)
    rows = torch.tensor([8, 0, 3, 3])
    dense = tensor.dequantize()[rows]
    taken = tensor.take_rows(rows)
    assert taken.shape == (4, 512)
    assert taken.quantization is tensor.quantization
    assert same_bits(taken.dequantize(), dense)
    assert same_bits(tensor.dequantize_rows(rows), dense)
    assert tensor.dequantize_rows(rows[:0]).shape == (0, 512)


@pytest.mark.parametrize("name", ["F32", "F16", "Q4_1", "Q6_K"])
def test_another_dtype_is_rounded_from_float32(name: str) -> None:
    tensor = packed(name, 4, 256)
    assert torch.equal(tensor.dequantize(torch.bfloat16), tensor.dequantize().bfloat16())


def test_a_packed_tensor_counts_its_packed_bytes() -> None:
    tensor = packed("Q4_1", 4, 256)
    assert tensor.nbytes == 4 * 256 // 32 * 20
    assert tensor.to(torch.device("cpu")).data.equal(tensor.data)


def test_what_the_gguf_package_cannot_dequantize_is_not_supported() -> None:
    assert all(is_supported(GGMLQuantizationType[name]) for name in [*OWN, *THROUGH_GGUF])
    assert not any(is_supported(GGMLQuantizationType[name]) for name in ("I8", "I64", "F64", "Q8_1", "Q8_K"))


def test_every_weight_of_the_real_model_is_where_transformers_has_it(
    smollm2_gguf: Path, transformers_smollm2: PreTrainedModel
) -> None:
    checkpoint = load_checkpoint(GgufFile.open(smollm2_gguf))
    theirs = transformers_smollm2.state_dict()
    assert {*theirs} - {*checkpoint.tensors} == {"lm_head.weight"}  # tied
    assert {*checkpoint.tensors} <= {*theirs}
    for name, tensor in checkpoint.tensors.items():
        dense = tensor.dequantize() if isinstance(tensor, QuantizedTensor) else tensor
        assert torch.equal(dense, theirs[name]), name


def test_unpermuting_matters_for_the_real_model(smollm2_gguf: Path, transformers_smollm2: PreTrainedModel) -> None:
    stored = GgufFile.open(smollm2_gguf).tensor("blk.0.attn_q.weight").dequantize()
    assert not torch.equal(stored, transformers_smollm2.state_dict()["model.layers.0.self_attn.q_proj.weight"])
