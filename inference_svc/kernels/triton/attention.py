"""Causal grouped-query attention over the paged cache (FlashAttention-2, arXiv 2307.08691; Flash-Decoding).

A program has a tile of queries of one sequence and the heads that share one head of keys and values, which it reads
once for all of them, BLOCK positions at a time, each found through the sequence's cache blocks. Scores, softmax and
sums are float32. Positions are taken in blocks that begin at multiples of BLOCK, and a block that a row sees nothing
of leaves its sums as they are: what a row adds, and in which order, depends on its own position alone, in either
mode.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from inference_svc.kernels.triton.attention_table import SPLIT, AttentionTable
from inference_svc.kernels.triton.dot import dot
from inference_svc.kernels.triton.elementwise import tanh
from inference_svc.layers.batch import AttentionShape

BLOCK = 64  # positions; divides SPLIT


def attend(
    output: Tensor,
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    block_size: int,
    table: AttentionTable,
    shape: AttentionShape,
) -> None:
    """Attention of the queries that are in the table; others are left alone.

    Args:
        output: [num_tokens, num_heads, head_dim], contiguous: written to.
        queries: [num_tokens, num_heads, head_dim], each row contiguous.
        keys: [num_blocks, block_size, num_kv_heads, head_dim], contiguous: one layer of the cache.
        values: the same.
        block_size: of the cache.
        table: which rows, and where their keys and values lie.
        shape: of the attention.
    """
    group, head_dim = shape.num_heads // shape.num_kv_heads, shape.head_dim
    block_dim = max(16, triton.next_power_of_2(head_dim))
    num_tiles, pieces = len(table.tiles), max(1, table.splits)
    parts, peaks, weights = output, output, output
    if table.splits:
        sizes = (num_tiles, shape.num_kv_heads, pieces, table.block_rows)
        parts = torch.empty((*sizes, block_dim), dtype=torch.float32, device=output.device)
        peaks, weights = (torch.empty(sizes, dtype=torch.float32, device=output.device) for _ in range(2))
    sizes_of = {"GROUP": group, "HEAD_DIM": head_dim, "ROWS": table.block_rows, "DIM": block_dim}
    _attend[(num_tiles, shape.num_kv_heads, pieces)](
        output,
        parts,
        peaks,
        weights,
        queries,
        keys,
        values,
        table.tiles,
        table.blocks,
        table.blocks.shape[1],
        queries.stride(0),
        shape.scale,
        shape.softcap or 0.0,
        shape.window or 0,
        **sizes_of,
        HEADS=shape.num_heads,
        BLOCK_SIZE=block_size,
        BLOCK=BLOCK,
        SPLIT=SPLIT if table.splits else 0,
        HAS_SOFTCAP=shape.softcap is not None,
        HAS_WINDOW=shape.window is not None,
        num_warps=8 if table.block_rows >= 64 else 4,  # with 4, sums of 64 rows do not fit into registers
        # Wide keys and values are not loaded ahead: smaller GPUs have 99 KB of shared memory for a program.
        num_stages=3 if block_dim * keys.element_size() <= 256 else 1,
    )
    if table.splits:
        _join[(num_tiles, shape.num_kv_heads)](
            output, parts, peaks, weights, table.tiles, pieces, **sizes_of, HEADS=shape.num_heads, SPLIT=SPLIT
        )


# How long contexts are must not be a reason to compile anew.
@triton.jit(do_not_specialize=["max_blocks"])
def _attend(
    output,
    parts,
    peaks,
    weights,
    queries,
    keys,
    values,
    tiles,
    blocks,
    max_blocks,
    query_stride,
    scale,
    softcap,
    window,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    ROWS: tl.constexpr,
    DIM: tl.constexpr,
    HEADS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    SPLIT: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
):
    """One tile, one head of keys and values, and all positions or one piece of them."""
    tile, kv_head = tl.program_id(0), tl.program_id(1)
    first_row, num_rows = tl.load(tiles + tile * 4), tl.load(tiles + tile * 4 + 1)
    first_position, sequence = tl.load(tiles + tile * 4 + 2), tl.load(tiles + tile * 4 + 3)
    lane, dim = tl.arange(0, ROWS), tl.arange(0, DIM)
    query, head = lane // GROUP, kv_head * GROUP + lane % GROUP
    position = first_position + query
    there = (query < num_rows)[:, None] & (dim < HEAD_DIM)[None, :]
    row = (first_row + query).to(tl.int64)
    q = tl.load(queries + row[:, None] * query_stride + head[:, None] * HEAD_DIM + dim[None, :], mask=there, other=0.0)

    end = first_position + num_rows
    begin = 0
    if HAS_WINDOW:
        begin = tl.maximum(first_position - window + 1, 0)
    if SPLIT:
        begin = tl.maximum(begin, tl.program_id(2) * SPLIT)
        end = tl.minimum(end, (tl.program_id(2) + 1) * SPLIT)

    peak = tl.full((ROWS,), float("-inf"), tl.float32)
    weight = tl.zeros((ROWS,), tl.float32)
    sums = tl.zeros((ROWS, DIM), tl.float32)
    for start in range(begin // BLOCK * BLOCK, end, BLOCK):
        seen = start + tl.arange(0, BLOCK)
        is_seen = seen < end
        block = tl.load(blocks + sequence * max_blocks + seen // BLOCK_SIZE, mask=is_seen, other=0).to(tl.int64)
        slot = (block * BLOCK_SIZE + seen % BLOCK_SIZE) * (HEADS // GROUP) + kv_head
        key = tl.load(
            keys + slot[None, :] * HEAD_DIM + dim[:, None],
            mask=is_seen[None, :] & (dim < HEAD_DIM)[:, None],
            other=0.0,
        )
        scores = dot(q, key, tl.zeros((ROWS, BLOCK), tl.float32)) * scale
        if HAS_SOFTCAP:
            scores = softcap * tanh(scores / softcap)
        is_visible = seen[None, :] <= position[:, None]
        if HAS_WINDOW:
            is_visible = is_visible & (seen[None, :] > position[:, None] - window)
        scores = tl.where(is_visible, scores, float("-inf"))
        higher = tl.maximum(peak, tl.max(scores, axis=1))
        shift = tl.where(higher == float("-inf"), 0.0, higher)  # a row that has seen nothing yet
        shares = tl.exp(scores - shift[:, None])
        fade = tl.exp(peak - shift)
        value = tl.load(
            values + slot[:, None] * HEAD_DIM + dim[None, :],
            mask=is_seen[:, None] & (dim < HEAD_DIM)[None, :],
            other=0.0,
        )
        weight = weight * fade + tl.sum(shares, axis=1)
        sums = dot(shares.to(value.dtype), value, sums * fade[:, None])
        peak = higher

    if SPLIT:
        at = ((tile * (HEADS // GROUP) + kv_head) * tl.num_programs(2) + tl.program_id(2)).to(tl.int64) * ROWS + lane
        tl.store(peaks + at, peak)
        if begin < end:
            tl.store(weights + at, weight)
            tl.store(parts + at[:, None] * DIM + dim[None, :], sums)
    else:
        mixed = sums / tl.maximum(weight, 1.0)[:, None]  # it is 1 and more, but of a row that is nobody's
        at = (row[:, None] * HEADS + head[:, None]) * HEAD_DIM + dim[None, :]
        tl.store(output + at, mixed.to(output.dtype.element_ty), mask=there)


@triton.jit(do_not_specialize=["pieces"])
def _join(
    output,
    parts,
    peaks,
    weights,
    tiles,
    pieces,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    ROWS: tl.constexpr,
    DIM: tl.constexpr,
    HEADS: tl.constexpr,
    SPLIT: tl.constexpr,
):
    """The pieces of a context together, in their order."""
    tile, kv_head = tl.program_id(0), tl.program_id(1)
    first_row, num_rows = tl.load(tiles + tile * 4), tl.load(tiles + tile * 4 + 1)
    lane, dim = tl.arange(0, ROWS), tl.arange(0, DIM)
    query, head = lane // GROUP, kv_head * GROUP + lane % GROUP
    peak = tl.full((ROWS,), float("-inf"), tl.float32)
    weight = tl.zeros((ROWS,), tl.float32)
    sums = tl.zeros((ROWS, DIM), tl.float32)
    for piece in range(tl.cdiv(tl.load(tiles + tile * 4 + 2) + num_rows, SPLIT)):
        at = ((tile * (HEADS // GROUP) + kv_head) * pieces + piece).to(tl.int64) * ROWS + lane
        own = tl.load(peaks + at)
        is_seen = own > float("-inf")  # else nothing was written but that
        higher = tl.maximum(peak, own)
        shift = tl.where(higher == float("-inf"), 0.0, higher)
        fade, share = tl.exp(peak - shift), tl.exp(own - shift)
        part = tl.load(parts + at[:, None] * DIM + dim[None, :], mask=is_seen[:, None], other=0.0)
        weight = weight * fade + tl.load(weights + at, mask=is_seen, other=0.0) * share
        sums = sums * fade[:, None] + part * share[:, None]
        peak = higher
    there = (query < num_rows)[:, None] & (dim < HEAD_DIM)[None, :]
    row = (first_row + query).to(tl.int64)
    at = (row[:, None] * HEADS + head[:, None]) * HEAD_DIM + dim[None, :]
    tl.store(output + at, (sums / tl.maximum(weight, 1.0)[:, None]).to(output.dtype.element_ty), mask=there)
