"""The native kernels against the reference, and that no row's arithmetic depends on its company."""

from __future__ import annotations

import contextlib

import gguf.quants
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType

from inference_svc.kernels.choice import choose_kernels
from inference_svc.kernels.native import NativeKernels, NativeUnavailable
from inference_svc.kernels.operations import Kernels
from inference_svc.kernels.reference import ReferenceKernels
from inference_svc.kv_cache.cache import KVCache
from inference_svc.layers.batch import AttentionSegment, AttentionShape
from inference_svc.weights.quantization import QuantizedTensor

TYPES = ("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")
REFERENCE = ReferenceKernels(batch_invariant=False)


def _kernels() -> list[Kernels]:
    kernels: list[Kernels] = [ReferenceKernels(batch_invariant=True)]
    # Without a compiler the reference is what runs, and it is tested.
    with contextlib.suppress(NativeUnavailable):
        kernels.append(NativeKernels(batch_invariant=True))
    return kernels


KERNELS = pytest.mark.parametrize("kernels", _kernels(), ids=lambda k: k.name)


def packed(rows: int, columns: int, quantization: str) -> QuantizedTensor:
    kind = GGMLQuantizationType[quantization]
    values = np.random.default_rng(0).standard_normal((rows, columns), dtype=np.float32)
    data = gguf.quants.quantize(values, kind).view(np.uint8).reshape(rows, -1)
    return QuantizedTensor(torch.from_numpy(data.copy()), kind, (rows, columns))


@KERNELS
@pytest.mark.parametrize("quantization", TYPES)
@pytest.mark.parametrize(("num_rows", "columns", "out"), [(1, 64, 5), (3, 96, 16), (17, 576, 192)])
def test_a_product_over_packed_weights_equals_the_dense_product(
    kernels: Kernels, quantization: str, num_rows: int, columns: int, out: int
) -> None:
    weight = packed(out, columns, quantization)
    x = torch.randn(num_rows, columns, generator=torch.Generator().manual_seed(1))
    expected = x.double() @ weight.dequantize().double().T
    # Float32 sums of 576 products of size about 1: the bound is a hundred roundings of 6e-8 times 24.
    torch.testing.assert_close(kernels.linear(x, weight).double(), expected, atol=1e-4, rtol=1e-5)


@KERNELS
@pytest.mark.parametrize("in_features", [1, 4, 16, 33, 576])
def test_a_dense_product_takes_any_width(kernels: Kernels, in_features: int) -> None:
    x, matrix = torch.randn(5, in_features), torch.randn(7, in_features)
    torch.testing.assert_close(kernels.dense(x, matrix), x @ matrix.T, atol=1e-4, rtol=1e-5)


@KERNELS
@pytest.mark.parametrize("quantization", ["Q4_1", "Q8_0"])
def test_a_row_is_the_same_to_the_bit_alone_and_in_any_crowd(kernels: Kernels, quantization: str) -> None:
    weight = packed(192, 576, quantization)
    crowd = torch.randn(70, 576)
    together = kernels.linear(crowd, weight)
    normed = kernels.rms_norm(crowd, torch.ones(576), 1e-5)
    for row in range(70):
        alone = crowd[row : row + 1]
        assert torch.equal(kernels.linear(alone, weight)[0], together[row])
        assert torch.equal(kernels.linear(crowd[row // 2 : row + 1], weight)[-1], together[row])
        assert torch.equal(kernels.rms_norm(alone, torch.ones(576), 1e-5)[0], normed[row])


@KERNELS
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(9, 3, 64), (4, 4, 32), (8, 2, 24)])
def test_attention_over_scattered_blocks_equals_plain_attention(
    kernels: Kernels, heads: int, kv_heads: int, head_dim: int
) -> None:
    length, block_size = 53, 16
    shape = AttentionShape(heads, kv_heads, head_dim, head_dim**-0.5)
    cache = KVCache(
        1, 9, block_size, kv_heads, head_dim, heads * head_dim, dtype=torch.float32, device=torch.device("cpu")
    )
    q, k, v = (torch.randn(length, n, head_dim) for n in (heads, kv_heads, kv_heads))
    blocks = torch.tensor([7, 2, 5, 0])
    slots = torch.tensor([int(blocks[p // block_size]) * block_size + p % block_size for p in range(length)])
    cache.write(0, slots, k, v)
    expected = torch.nn.functional.scaled_dot_product_attention(
        q.transpose(0, 1), k.transpose(0, 1), v.transpose(0, 1), is_causal=True, enable_gqa=True
    ).transpose(0, 1)
    whole = kernels.attention(q, cache, 0, (AttentionSegment(0, length, 0, blocks),), shape)
    torch.testing.assert_close(whole, expected, atol=1e-5, rtol=1e-5)
    # However the prompt is cut: the same bits.
    for cut in (1, 16, 30, 52):
        for start, stop in ((0, cut), (cut, length)):
            segment = AttentionSegment(0, stop - start, start, blocks)
            piece = kernels.attention(q[start:stop], cache, 0, (segment,), shape)
            assert torch.equal(piece, whole[start:stop])


def test_without_a_compiler_the_reference_runs_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", "/nowhere")
    choice = choose_kernels("auto", torch.device("cpu"), batch_invariant=True)
    assert choice.kernels.name == "reference"
    assert "no C++ compiler" in choice.notice
