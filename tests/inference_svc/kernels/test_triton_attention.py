"""Attention over the paged cache, by Triton, against the reference in float64."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from inference_svc.kernels.reference import ReferenceKernels
from inference_svc.kv_cache.cache import KVCache
from inference_svc.layers.batch import AttentionSegment, AttentionShape
from tests.inference_svc.kernels.triton_device import DEVICE, ROUNDING

pytest.importorskip("triton")

from inference_svc.kernels.triton.attention_table import SPLIT, tables_of
from inference_svc.kernels.triton.kernels import TritonKernels
from inference_svc.kernels.triton.weights import PackedWeights

BLOCK_SIZE = 16
SHAPES = [
    AttentionShape(6, 2, 32, 0.2),
    AttentionShape(4, 4, 16, 0.3, window=70),
    AttentionShape(8, 1, 24, 0.3, softcap=2.0),
    AttentionShape(20, 1, 48, 0.1, window=5, softcap=3.0),
]
# First position and number of rows of each sequence: prompts whole and in pieces, decoding, drafts.
RAGGED = [(0, 40), (300, 1), (17, 3), (0, 1), (520, 30), (255, 1), (256, 1)]


def kernels(*, batch_invariant: bool) -> TritonKernels:
    return TritonKernels(PackedWeights(torch.float32), batch_invariant=batch_invariant)


def made(
    cuts: list[tuple[int, int]], shape: AttentionShape, dtype: torch.dtype
) -> tuple[Tensor, KVCache, tuple[AttentionSegment, ...]]:
    """Queries, a cache that is full of random numbers, and the segments, whose blocks lie anywhere."""
    chance = torch.Generator().manual_seed(len(cuts))
    counts = [-(-(first + num_rows) // BLOCK_SIZE) for first, num_rows in cuts]
    order = torch.split(torch.randperm(sum(counts), generator=chance), counts)
    segments, row = [], 0
    for (first, num_rows), blocks in zip(cuts, order, strict=True):
        segments.append(AttentionSegment(row, num_rows, first, blocks.to(DEVICE)))
        row += num_rows
    width = shape.num_heads * shape.head_dim
    cache = KVCache(2, sum(counts), BLOCK_SIZE, shape.num_kv_heads, shape.head_dim, width, dtype=dtype, device=DEVICE)
    for whole in cache.storage:
        whole.copy_(torch.randn(whole.shape, generator=chance))
    return torch.randn(row, shape.num_heads, shape.head_dim, generator=chance).to(DEVICE, dtype), cache, tuple(segments)


def exactly(queries: Tensor, cache: KVCache, segments: tuple[AttentionSegment, ...], shape: AttentionShape) -> Tensor:
    keys, values = cache.storage
    wide = KVCache(
        2, keys.shape[1], BLOCK_SIZE, shape.num_kv_heads, shape.head_dim, 1, dtype=torch.float64, device=DEVICE
    )
    for own, its in zip(wide.storage, (keys, values), strict=True):
        own.copy_(its)
    return ReferenceKernels(batch_invariant=False).attention(queries.double(), wide, 1, segments, shape)


def check(cuts: list[tuple[int, int]], shape: AttentionShape, dtype: torch.dtype, *, batch_invariant: bool) -> None:
    queries, cache, segments = made(cuts, shape, dtype)
    found = kernels(batch_invariant=batch_invariant).attention(queries, cache, 1, segments, shape)
    assert found.dtype is dtype
    # Shares of positions are rounded to the type, and so is the mean of values that they make; shares add up to 1.
    largest = cache.storage[1].abs().max().double()
    expected = exactly(queries, cache, segments, shape)
    assert ((found.double() - expected).abs() <= 2 * ROUNDING[dtype] * largest).all()


@pytest.mark.parametrize(
    ("shape", "batch_invariant"), [*((shape, False) for shape in SHAPES), (SHAPES[1], True), (SHAPES[2], True)], ids=str
)
def test_attention_is_that_of_the_reference_whatever_the_sequences_do(
    shape: AttentionShape, batch_invariant: bool
) -> None:
    check(RAGGED, shape, torch.float32, batch_invariant=batch_invariant)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_attention_in_half_precision_rounds_no_more_than_it_must(dtype: torch.dtype) -> None:
    check(RAGGED, replace(SHAPES[0], softcap=20.0), dtype, batch_invariant=False)


@settings(max_examples=8)
@given(
    cuts=st.lists(st.tuples(st.integers(0, 2 * SPLIT + 20), st.integers(1, 40)), min_size=1, max_size=4),
    num_kv_heads=st.integers(1, 3),
    group=st.integers(1, 5),
    head_dim=st.sampled_from([8, 16, 40]),
    window=st.none() | st.integers(1, 400),
    softcap=st.none() | st.floats(1.0, 50.0),
)
def test_any_attention_is_that_of_the_reference(
    cuts: list[tuple[int, int]],
    num_kv_heads: int,
    group: int,
    head_dim: int,
    window: int | None,
    softcap: float | None,
) -> None:
    shape = AttentionShape(num_kv_heads * group, num_kv_heads, head_dim, head_dim**-0.5, window, softcap)
    check(cuts, shape, torch.float32, batch_invariant=False)


@pytest.mark.parametrize("shape", SHAPES[::3], ids=str)
def test_in_batch_invariant_mode_the_answer_is_the_same_to_the_bit_however_a_sequence_is_cut(
    shape: AttentionShape,
) -> None:
    length = 90
    queries, cache, (whole,) = made([(0, length)], shape, torch.float32)
    invariant = kernels(batch_invariant=True)
    expected = invariant.attention(queries, cache, 1, (whole,), shape)
    for cuts in ([1, 17, 64, 65], [89]):
        edges = [0, *cuts, length]
        pieces = tuple(AttentionSegment(first, end - first, first, whole.blocks) for first, end in pairwise(edges))
        assert torch.equal(invariant.attention(queries, cache, 1, pieces, shape), expected)


def test_what_nobody_has_written_to_the_cache_does_not_matter() -> None:
    shape = SHAPES[1]
    queries, cache, segments = made([(0, 5), (20, 1)], shape, torch.float32)
    expected = kernels(batch_invariant=False).attention(queries, cache, 1, segments, shape)
    for whole in cache.storage:
        for segment in segments:
            end = segment.first_position + segment.num_rows
            whole[1, segment.blocks[end // BLOCK_SIZE], end % BLOCK_SIZE :] = float("nan")
    assert torch.equal(kernels(batch_invariant=False).attention(queries, cache, 1, segments, shape), expected)


def test_queries_may_be_parts_of_wider_rows() -> None:
    shape = SHAPES[0]
    queries, cache, segments = made([(0, 5), (20, 1)], shape, torch.float32)
    wide = torch.cat((queries.flatten(1), queries.flatten(1)), dim=1)
    part = wide[:, : shape.num_heads * shape.head_dim].reshape(len(wide), -1, shape.head_dim)
    own = kernels(batch_invariant=False)
    assert torch.equal(
        own.attention(part, cache, 1, segments, shape), own.attention(queries, cache, 1, segments, shape)
    )


def test_sequences_that_decode_share_their_contexts_out_and_prompts_do_not() -> None:
    _, _, segments = made(RAGGED, SHAPES[0], torch.float32)
    decoding, prompts = tables_of(segments, 3, BLOCK_SIZE, batch_invariant=False)
    assert decoding.tiles.tolist() == [[40, 1, 300, 0], [41, 3, 17, 1], [44, 1, 0, 2], [75, 1, 255, 3], [76, 1, 256, 4]]
    assert decoding.splits == 2
    # 21 queries of three heads each are a tile of 64 rows.
    assert prompts.tiles.tolist() == [[0, 21, 0, 0], [21, 19, 21, 0], [45, 21, 520, 1], [66, 9, 541, 1]]
    assert prompts.splits == 0
    (alike,) = tables_of(segments, 3, BLOCK_SIZE, batch_invariant=True)
    assert len(alike.tiles) == 9
