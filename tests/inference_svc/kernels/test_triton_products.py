"""Products with packed weights, by Triton, against exact ones with the unpacked weights."""

from __future__ import annotations

import gguf.quants
import numpy as np
import pytest
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from inference_svc.kernels.native.sizes import packed_bytes
from inference_svc.weights.quantization import QuantizedTensor
from tests.inference_svc.kernels.triton_device import DEVICE, ROUNDING
from tests.inference_svc.weights.packed_rows import rows_of_size

pytest.importorskip("triton")

from inference_svc.kernels.triton.kernels import TritonKernels
from inference_svc.kernels.triton.packing import PackedWeight, pack
from inference_svc.kernels.triton.weights import PackedWeights

CODED = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS")


def matrix(rows: int, columns: int, quantization: str) -> QuantizedTensor:
    """Random numbers of size about 1."""
    kind = GGMLQuantizationType[quantization]
    if quantization in CODED:
        data = rows_of_size(kind, rows, columns, 1.0, seed=rows + columns)
    else:
        values = np.random.default_rng(rows + columns).standard_normal((rows, columns), dtype=np.float32)
        data = gguf.quants.quantize(values, kind).view(np.uint8).reshape(rows, -1)
    return QuantizedTensor(torch.from_numpy(data.copy()).to(DEVICE), kind, (rows, columns))


def kernels(dtype: torch.dtype, *, batch_invariant: bool = False) -> TritonKernels:
    return TritonKernels(PackedWeights(dtype), batch_invariant=batch_invariant)


def activations(rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows)).to(DEVICE, dtype)


def check(weight: QuantizedTensor, x: Tensor, y: Tensor) -> None:
    dense = weight.dequantize().double()
    assert y.dtype is x.dtype
    # The weight is rounded to the type of the activations, and so is the sum. Scales of blocks of 256 are products that
    # are kept as halves: each moves by 2^-11, and a minimum may then take most of the value away.
    allowed = 2 * ROUNDING[x.dtype] + (6e-4 if GGML_QUANT_SIZES[weight.quantization][0] == 256 else 0.0)
    size = x.double().abs() @ dense.abs().T
    assert ((y.double() - x.double() @ dense.T).abs() <= allowed * size).all()


@pytest.mark.parametrize("num_rows", [3, 18])
@pytest.mark.parametrize("quantization", CODED)
def test_a_product_is_that_of_the_unpacked_matrix(quantization: str, num_rows: int) -> None:
    weight = matrix(20, 256, quantization)
    x = activations(num_rows, 256, torch.float32)
    check(weight, x, kernels(torch.float32).linear(x, weight))


@pytest.mark.parametrize("num_rows", [2, 18])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("quantization", ["Q4_0", "Q5_1", "Q6_K", "F16", "BF16", "F32"])
def test_a_product_in_half_precision_rounds_no_more_than_it_must(
    quantization: str, dtype: torch.dtype, num_rows: int
) -> None:
    weight = matrix(20, 256, quantization)
    x = activations(num_rows, 256, dtype)
    check(weight, x, kernels(dtype).linear(x, weight))


@settings(max_examples=10)
@given(
    num_rows=st.integers(0, 70),
    outputs=st.integers(1, 70),
    steps=st.integers(1, 9),
    quantization=st.sampled_from(["Q4_1", "Q5_0"]),
    batch_invariant=st.booleans(),
)
def test_a_product_of_any_size_is_that_of_the_unpacked_matrix(
    num_rows: int, outputs: int, steps: int, quantization: str, batch_invariant: bool
) -> None:
    weight = matrix(outputs, 32 * steps, quantization)
    x = activations(num_rows, 32 * steps, torch.float32)
    check(weight, x, kernels(torch.float32, batch_invariant=batch_invariant).linear(x, weight))


def test_in_batch_invariant_mode_a_row_is_the_same_to_the_bit_alone_and_in_any_crowd() -> None:
    invariant = kernels(torch.float32, batch_invariant=True)
    weight, crowd = matrix(40, 256, "Q4_1"), activations(70, 256, torch.float32)
    together = invariant.linear(crowd, weight)
    for first, end in ((0, 1), (69, 70), (3, 8), (10, 40)):
        assert torch.equal(invariant.linear(crowd[first:end], weight), together[first:end])


def unpacked(packed: PackedWeight) -> Tensor:
    """float32 [rows, columns], by the description of the layout."""
    rows, columns = packed.shape
    codes = packed.codes
    if packed.bits == 4:
        steps = codes.reshape(rows, columns // 32, 16)
        codes = torch.stack((steps & 15, steps >> 4), dim=2)
    values = codes.reshape(rows, -1, packed.group).float() - packed.zero
    values *= packed.scales.float().unsqueeze(-1)
    if packed.minima is not None:
        values += packed.minima.float().unsqueeze(-1)
    return values.reshape(rows, columns)


@pytest.mark.parametrize("quantization", CODED)
def test_a_packed_weight_is_the_weight_and_its_codes_have_the_bits_they_need(
    monkeypatch: pytest.MonkeyPatch, quantization: str
) -> None:
    monkeypatch.setattr("inference_svc.kernels.triton.packing.PIECE", 1000)  # piece by piece
    weight = matrix(7, 512, quantization)
    packed = pack(weight)
    assert packed is not None
    assert packed.codes.nbytes == 7 * 512 * packed.bits // 8
    # As much as is reckoned with before a model is loaded, for rows in tiles of 16.
    taken = sum(part.nbytes for part in (packed.codes, packed.scales, packed.minima) if part is not None)
    assert 16 * taken == 7 * (packed_bytes(weight.quantization, 16, 512) or 0)
    assert packed.scales.dtype is torch.float16
    if GGML_QUANT_SIZES[weight.quantization][0] == 32:
        assert torch.equal(unpacked(packed), weight.dequantize())
    else:  # whose scales are products, rounded to halves here
        torch.testing.assert_close(unpacked(packed), weight.dequantize(), atol=2e-2, rtol=2**-10)


def test_scales_that_no_half_holds_are_kept_in_float32() -> None:
    weight = matrix(20, 256, "Q4_K")
    weight.data[:, 0:2] = torch.tensor([0xFF, 0x7B], dtype=torch.uint8)  # 65504, and its multiples are more
    packed = pack(weight)
    assert packed is not None
    assert packed.scales.dtype is torch.float32
    assert torch.equal(unpacked(packed), weight.dequantize())
    for num_rows in (1, 5):
        x = activations(num_rows, 256, torch.float32)
        check(weight, x, kernels(torch.float32).linear(x, weight))


def test_a_product_reads_rows_that_are_parts_of_wider_ones() -> None:
    weight, wide = matrix(24, 256, "Q8_0"), activations(6, 600, torch.float32)
    for rows in (2, 6):
        x = wide[:rows, 100:356]
        assert torch.equal(kernels(torch.float32).linear(x, weight), kernels(torch.float32).linear(x.clone(), weight))
