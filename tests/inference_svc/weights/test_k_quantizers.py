"""Packing into K-quants errs no more than llama.cpp does, and less than the legacy types of about as many bits."""

from __future__ import annotations

import gguf
import gguf.quants
import numpy as np
import pytest
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from inference_svc.weights.in_situ import pack
from inference_svc.weights.k_quantizers import K_QUANTIZERS
from inference_svc.weights.quantization import QuantizedTensor

Q4_K, Q6_K = GGMLQuantizationType.Q4_K, GGMLQuantizationType.Q6_K
SHAPE = (32, 1024)


def values_of(kind: str) -> NDArray[np.float32]:
    random = np.random.default_rng(5)
    match kind:
        case "normal":
            return random.standard_normal(SHAPE, dtype=np.float32) * np.float32(0.02)
        case "heavy":
            return (random.standard_t(3, SHAPE) * 0.02).astype(np.float32)
        case "positive":
            return random.random(SHAPE, dtype=np.float32) + np.float32(0.5)
        case "negative":
            return -random.random(SHAPE, dtype=np.float32) - np.float32(0.5)
    assert kind == "sparse"
    return random.standard_normal(SHAPE, dtype=np.float32) * (random.random(SHAPE) < 0.05).astype(np.float32)


def unpacked(data: torch.Tensor, quantization: GGMLQuantizationType) -> NDArray[np.float32]:
    columns = data.shape[1] // GGML_QUANT_SIZES[quantization][1] * GGML_QUANT_SIZES[quantization][0]
    return QuantizedTensor(data, quantization, (len(data), columns)).dequantize().numpy()


def error(values: NDArray[np.float32], again: NDArray[np.float32]) -> float:
    return float(np.linalg.norm(again.astype(np.float64) - values) / np.linalg.norm(values))


def error_of(values: NDArray[np.float32], quantization: GGMLQuantizationType) -> float:
    return error(values, unpacked(pack(torch.from_numpy(values), quantization), quantization))


def error_by_gguf(values: NDArray[np.float32], name: str) -> float:
    kind = GGMLQuantizationType[name]
    return error(values, gguf.quants.dequantize(gguf.quants.quantize(values, kind), kind))


# What ggml_quantize_chunk of llama.cpp b11434 makes of these values. The search is the same; sums of float32 are taken
# in another order, so that now and then another of two nearly equal candidates wins: 3e-4 of the error, either way.
@pytest.mark.parametrize(
    ("kind", "quantization", "llama_cpp"),
    [
        ("normal", Q4_K, 0.070216),
        ("heavy", Q4_K, 0.093689),
        ("positive", Q4_K, 0.024339),
        ("negative", Q4_K, 0.015663),
        ("sparse", Q4_K, 0.045965),
        ("normal", Q6_K, 0.017524),
        ("heavy", Q6_K, 0.025615),
        ("positive", Q6_K, 0.010847),
        ("negative", Q6_K, 0.010847),
        ("sparse", Q6_K, 0.006071),
    ],
)
def test_the_error_is_that_of_llama_cpp(kind: str, quantization: GGMLQuantizationType, llama_cpp: float) -> None:
    assert error_of(values_of(kind), quantization) == pytest.approx(llama_cpp, rel=1e-3)


@pytest.mark.parametrize("kind", ["normal", "heavy"])
def test_the_error_on_values_like_weights_is_below_that_of_the_legacy_types(kind: str) -> None:
    values = values_of(kind)
    q4_k = error_of(values, Q4_K)
    assert q4_k < 0.95 * error_by_gguf(values, "Q4_1")  # 5 bits a value to our 4.5
    assert q4_k < 0.85 * error_by_gguf(values, "Q4_0")  # 4.5 bits too
    assert error_of(values, Q6_K) < 0.3 * error_by_gguf(values, "Q4_1")


@pytest.mark.parametrize("quantization", [Q4_K, Q6_K])
def test_bytes_are_read_by_the_gguf_package_as_by_us(quantization: GGMLQuantizationType) -> None:
    values = torch.from_numpy(values_of("normal"))
    data = pack(values, quantization)
    assert data.shape == (32, 4 * GGML_QUANT_SIZES[quantization][1])
    theirs = gguf.quants.dequantize(data.numpy(), quantization)
    assert np.array_equal(unpacked(data, quantization), theirs)
    assert error(values.numpy(), theirs) < 0.1


@pytest.mark.parametrize("quantization", [Q4_K, Q6_K])
def test_values_on_the_grid_of_the_type_come_back_as_they_were(quantization: GGMLQuantizationType) -> None:
    # Every group uses both ends of its levels, with scales that fit six (or eight) bits of a power of two.
    random = np.random.default_rng(1)
    group, lowest, highest = (32, 0, 15) if quantization is Q4_K else (16, -32, 31)
    levels = random.integers(lowest, highest + 1, (8, 256 // group, group))
    levels[:, :, 0], levels[:, :, 1] = lowest, highest
    scales = random.integers(1, 64, (8, 256 // group, 1))
    scales[:, 0] = 63 if quantization is Q4_K else 128
    minima = np.where(quantization is Q4_K, 63 * scales // 64, 0)
    minima[:, 0] = 63 if quantization is Q4_K else 0
    values = ((scales * levels - minima) / 64).astype(np.float32).reshape(8, 256)
    again = unpacked(pack(torch.from_numpy(values), quantization), quantization)
    assert np.allclose(again, values, rtol=0, atol=2e-3 * np.abs(values).max())


def test_zeros_and_constants_survive() -> None:
    for quantization in K_QUANTIZERS:
        assert unpacked(pack(torch.zeros(3, 512), quantization), quantization).any() == np.False_
        for value in (1.0, -1.0, 0.01, -300.0):
            again = unpacked(pack(torch.full((2, 256), value), quantization), quantization)
            # The scale for 0.01 is 0.01 / 15 / 63, a subnormal float16: these are 6e-8 apart.
            assert np.allclose(again, value, rtol=3e-3)


LARGEST = 65504.0  # what a scale of float16 can hold
ROWS = arrays.arrays(
    np.float32,
    st.tuples(st.integers(1, 3), st.sampled_from([256, 512])),
    elements=st.floats(-LARGEST, LARGEST, width=32),
    fill=st.floats(-LARGEST, LARGEST, width=32),
)


@given(ROWS, st.sampled_from([*K_QUANTIZERS]))
def test_any_values_come_back_within_a_few_steps_of_their_block(
    values: NDArray[np.float32], quantization: GGMLQuantizationType
) -> None:
    again = unpacked(pack(torch.from_numpy(values), quantization), quantization)
    assert np.isfinite(again).all()
    # Q4_K: a step of a block spans at most 1/15 of twice its largest value; half of it from rounding, and as much again
    # from scales and minima of six bits. Least squares may trade more than that on one value for others: at most twice.
    largest = np.abs(values.reshape(len(values), -1, 256)).max(2, keepdims=True)
    bar = largest * (4 / 15 if quantization is Q4_K else 4 / 63) + 6e-8 * 63 * 15
    assert (np.abs(again - values).reshape(len(values), -1, 256) <= bar).all()


@pytest.mark.parametrize("quantization", [*K_QUANTIZERS])
def test_each_block_is_packed_alone(quantization: GGMLQuantizationType) -> None:
    values = values_of("heavy")[:2].reshape(-1, 256)
    together = unpacked(pack(torch.from_numpy(values), quantization), quantization)
    for block, of_block in zip(values, together, strict=True):
        alone = unpacked(pack(torch.from_numpy(block.copy())[None], quantization), quantization)
        # Sums vectorise over blocks: which lane a block is in may change the last bit of one, and so which of two
        # equally good scales is taken, and how those of the block are rounded. With another block it would be 1.
        assert error(block, alone[0]) == pytest.approx(error(block, of_block), rel=0.1)
