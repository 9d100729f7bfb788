"""What adapters add to a linear layer: one launch for A x of all rows and banks, one for B of it.

For a row t, y_t += sum over its banks of B ((A x_t) * s): s is the row's scaling of the adapter that a rank belongs to.
Sums are float32; A x is rounded once, to the dtype of B, as tensor cores take it. Columns are cut into pieces of SPLIT,
so that a few rows keep more of a device busy: what is added in which order depends on the layer and the bank alone.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from inference_svc.kernels.triton.delta_table import (
    EXPERTS,
    FIELDS,
    RANK,
    RANKS,
    ROWS,
    SCALING_STRIDE,
    SCALINGS,
    A,
    B,
    DeltaTable,
)
from inference_svc.kernels.triton.dot import dot

SPLIT = 1024


def add_deltas(y: Tensor, x: Tensor, table: DeltaTable, layer: int) -> None:
    """Add to y [num_tokens, out_features], in place, what adapters make of x [num_tokens, in_features].

    y and x are of the dtype of the adapters' matrices.

    Args:
        y: whose rows are contiguous.
        x: whose rows are contiguous.
        table: of the pass.
        layer: the number of the linear layer in the table.
    """
    room, in_features, out_features = table.room, x.shape[1], y.shape[1]
    splits = triton.cdiv(in_features, SPLIT)
    low = torch.empty((splits, room.pairs, ROWS, room.ranks), dtype=torch.float32, device=x.device)
    descriptors = table.descriptors[layer]
    _multiply_a[(room.pairs, room.ranks // RANKS, splits)](
        x,
        low,
        table.rows,
        table.pair_tile,
        table.pair_bank,
        table.places,
        descriptors,
        in_features,
        x.stride(0),
        room.pairs,
        room.ranks,
        BLOCK=128,
    )
    columns = 64
    _multiply_b[(room.tiles, triton.cdiv(out_features, columns))](
        y,
        low,
        table.rows,
        table.first_pair,
        table.pair_bank,
        descriptors,
        out_features,
        y.stride(0),
        room.pairs,
        room.ranks,
        splits,
        COLUMNS=columns,
    )


_A, _B, _EXPERTS, _RANK, _SCALINGS, _SCALING_STRIDE, _FIELDS = (
    tl.constexpr(field) for field in (A, B, EXPERTS, RANK, SCALINGS, SCALING_STRIDE, FIELDS)
)
_ROWS, _RANKS, _SPLIT = tl.constexpr(ROWS), tl.constexpr(RANKS), tl.constexpr(SPLIT)


# What differs from pass to pass must not be a reason to compile anew: how many pairs there are, and where in memory the
# parts of a table begin.
_PASS = ["num_pairs", "rows", "first_pair", "pair_tile", "pair_bank", "places"]


@triton.jit(do_not_specialize=_PASS)
def _multiply_a(
    x,
    low,
    rows,
    pair_tile,
    pair_bank,
    places,
    descriptors,
    in_features,
    x_stride,
    num_pairs,
    ranks,
    BLOCK: tl.constexpr,
):
    """RANKS ranks of one pair over one piece of the columns, times their scalings."""
    pair, split = tl.program_id(0), tl.program_id(2)
    rank = tl.program_id(1) * _RANKS + tl.arange(0, _RANKS)
    bank = tl.load(pair_bank + pair)
    own = descriptors + bank * _FIELDS
    num_ranks = tl.load(own + _RANK, mask=bank >= 0, other=0)
    if tl.program_id(1) * _RANKS < num_ranks:
        lane = tl.arange(0, _ROWS)
        row = tl.load(rows + tl.load(pair_tile + pair) * _ROWS + lane).to(tl.int64)
        a = tl.load(own + _A).to(tl.pointer_type(x.dtype.element_ty))
        is_row, is_rank = row >= 0, rank < num_ranks
        sums = tl.zeros((_ROWS, _RANKS), tl.float32)
        for first in range(split * _SPLIT, tl.minimum(in_features, (split + 1) * _SPLIT), BLOCK):
            column = first + tl.arange(0, BLOCK)
            there = column < in_features
            values = tl.load(
                x + row[:, None] * x_stride + column[None, :], mask=is_row[:, None] & there[None, :], other=0.0
            )
            matrix = tl.load(
                a + rank[None, :].to(tl.int64) * in_features + column[:, None],
                mask=is_rank[None, :] & there[:, None],
                other=0.0,
            )
            sums = dot(values, matrix, sums)
        expert = tl.load(tl.load(own + _EXPERTS).to(tl.pointer_type(tl.int64)) + rank, mask=is_rank, other=0)
        place = tl.load(places + pair * _ROWS + lane).to(tl.int64)
        scaling = tl.load(
            tl.load(own + _SCALINGS).to(tl.pointer_type(tl.float32))
            + place[:, None] * tl.load(own + _SCALING_STRIDE)
            + expert[None, :],
            mask=is_row[:, None] & is_rank[None, :],
            other=0.0,
        )
        at = ((split * num_pairs + pair).to(tl.int64) * _ROWS + lane[:, None]) * ranks + rank[None, :]
        tl.store(low + at, sums * scaling)


@triton.jit(do_not_specialize=_PASS)
def _multiply_b(
    y,
    low,
    rows,
    first_pair,
    pair_bank,
    descriptors,
    out_features,
    y_stride,
    num_pairs,
    ranks,
    splits,
    COLUMNS: tl.constexpr,
):
    """COLUMNS outputs of one tile: through its pairs, and through the ranks of each."""
    tile = tl.program_id(0)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    lane = tl.arange(0, _ROWS)
    is_column = column < out_features
    sums = tl.zeros((_ROWS, COLUMNS), tl.float32)
    for pair in range(tl.load(first_pair + tile), tl.load(first_pair + tile + 1)):
        own = descriptors + tl.load(pair_bank + pair) * _FIELDS
        num_ranks = tl.load(own + _RANK)
        b = tl.load(own + _B).to(tl.pointer_type(y.dtype.element_ty))
        for first in range(0, num_ranks, _RANKS):
            rank = first + tl.arange(0, _RANKS)
            values = tl.zeros((_ROWS, _RANKS), tl.float32)
            for split in range(splits):
                at = ((split * num_pairs + pair).to(tl.int64) * _ROWS + lane[:, None]) * ranks + rank[None, :]
                values += tl.load(low + at)
            matrix = tl.load(
                b + column[None, :].to(tl.int64) * num_ranks + rank[:, None],
                mask=is_column[None, :] & (rank < num_ranks)[:, None],
                other=0.0,
            )
            sums = dot(values.to(matrix.dtype), matrix, sums)
    row = tl.load(rows + tile * _ROWS + lane).to(tl.int64)
    there = (row >= 0)[:, None] & is_column[None, :]
    at = y + row[:, None] * y_stride + column[None, :]
    before = tl.load(at, mask=there, other=0.0).to(tl.float32)
    tl.store(at, (before + sums).to(y.dtype.element_ty), mask=there)
