"""Products with quantized weights, which are unpacked tile by tile in registers and never lie in memory.

Both kernels take the columns in steps of 32, half a step (16 columns of each of STEPS steps) at a time, as weights
are packed. Sums are float32. The order in which a row's products are added depends on the weight alone: in
`_many_rows` a row is the same whatever the other rows are; `_few_rows` adds in another order, so the batch-invariant
mode leaves it out.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from inference_svc.kernels.triton.dot import dot
from inference_svc.kernels.triton.packing import PackedWeight

FEW_ROWS = 4  # up to here a row costs less in plain arithmetic than a tile of 16 rows on tensor cores


def quantized_linear(x: Tensor, weight: PackedWeight, *, batch_invariant: bool) -> Tensor:
    """[num_tokens, in_features] times the transpose of a packed [out_features, in_features] weight.

    With more than a few rows, weights are rounded to the dtype of x, as in the reference; sums are rounded once.
    """
    num_rows, (out_features, in_features) = len(x), weight.shape
    x = x if x.stride(1) == 1 else x.contiguous()
    y = torch.empty((num_rows, out_features), dtype=x.dtype, device=x.device)
    if not num_rows:
        return y
    minima = weight.scales if weight.minima is None else weight.minima
    arguments = (x, weight.codes, weight.scales, minima, y, num_rows, out_features, in_features, x.stride(0))
    coding = {
        "BITS": weight.bits,
        "GROUP": weight.group,
        "ZERO": weight.zero,
        "HAS_MINIMUM": weight.minima is not None,
        "STEPS": 4,
    }
    if num_rows <= FEW_ROWS and not batch_invariant:
        columns = 16
        _few_rows[(triton.cdiv(out_features, columns),)](
            *arguments, ROWS=triton.next_power_of_2(num_rows), COLUMNS=columns, **coding
        )
    else:
        rows, columns = 16 if num_rows <= 16 and not batch_invariant else 64, 64
        grid = (triton.cdiv(out_features, columns), triton.cdiv(num_rows, rows))
        _many_rows[grid](*arguments, ROWS=rows, COLUMNS=columns, **coding)
    return y


@triton.jit
def _half_step(
    codes,
    scales,
    minima,
    out,
    step,
    mask,
    in_features,
    HALF: tl.constexpr,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
    ZERO: tl.constexpr,
    HAS_MINIMUM: tl.constexpr,
    COLUMNS: tl.constexpr,
    STEPS: tl.constexpr,
):
    """Weights float32 [COLUMNS, 16 * STEPS] of outputs `out`: one half of each step."""
    lane = tl.arange(0, 16)
    at = out[:, None, None] * (in_features * BITS // 8) + step[None, :, None] * (4 * BITS) + lane[None, None, :]
    if BITS == 4:
        code = (tl.load(codes + at, mask=mask[:, :, None], other=0) >> (4 * HALF)) & 15
    else:
        code = tl.load(codes + at + 16 * HALF, mask=mask[:, :, None], other=0)
    # A step has one scale, or one for each half.
    group = out[:, None] * (in_features // GROUP) + step[None, :] * (32 // GROUP) + HALF * (32 // GROUP - 1)
    scale = tl.load(scales + group, mask=mask, other=0.0).to(tl.float32)
    value = (code.to(tl.float32) - ZERO) * scale[:, :, None]
    if HAS_MINIMUM:
        value += tl.load(minima + group, mask=mask, other=0.0).to(tl.float32)[:, :, None]
    return tl.reshape(value, (COLUMNS, 16 * STEPS))


# How many rows there are must not be a reason to compile anew.
@triton.jit(do_not_specialize=["num_rows"])
def _few_rows(
    x,
    codes,
    scales,
    minima,
    y,
    num_rows,
    out_features,
    in_features,
    x_stride,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
    ZERO: tl.constexpr,
    HAS_MINIMUM: tl.constexpr,
    STEPS: tl.constexpr,
):
    """All rows by COLUMNS outputs; products are summed over the columns once, at the end."""
    out = tl.program_id(0).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    row = tl.arange(0, ROWS)
    lane = tl.arange(0, 16)
    sums = tl.zeros((ROWS, COLUMNS, 16 * STEPS), tl.float32)
    for first in range(0, in_features // 32, STEPS):
        step = first + tl.arange(0, STEPS)
        mask = (out < out_features)[:, None] & (step < in_features // 32)[None, :]
        for HALF in tl.static_range(2):
            weight = _half_step(
                codes,
                scales,
                minima,
                out,
                step,
                mask,
                in_features,
                HALF,
                BITS,
                GROUP,
                ZERO,
                HAS_MINIMUM,
                COLUMNS,
                STEPS,
            )
            column = tl.reshape(step[:, None] * 32 + 16 * HALF + lane[None, :], (16 * STEPS,))
            there = (row < num_rows)[:, None] & (column < in_features)[None, :]
            values = tl.load(x + row[:, None] * x_stride + column[None, :], mask=there, other=0.0).to(tl.float32)
            sums += values[:, None, :] * weight[None, :, :]
    there = (row < num_rows)[:, None] & (out < out_features)[None, :]
    tl.store(y + row[:, None] * out_features + out[None, :], tl.sum(sums, axis=2).to(y.dtype.element_ty), mask=there)


@triton.jit(do_not_specialize=["num_rows"])
def _many_rows(
    x,
    codes,
    scales,
    minima,
    y,
    num_rows,
    out_features,
    in_features,
    x_stride,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
    ZERO: tl.constexpr,
    HAS_MINIMUM: tl.constexpr,
    STEPS: tl.constexpr,
):
    """ROWS rows by COLUMNS outputs, on tensor cores."""
    out = tl.program_id(0).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    row = tl.program_id(1).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    lane = tl.arange(0, 16)
    sums = tl.zeros((ROWS, COLUMNS), tl.float32)
    for first in range(0, in_features // 32, STEPS):
        step = first + tl.arange(0, STEPS)
        mask = (out < out_features)[:, None] & (step < in_features // 32)[None, :]
        for HALF in tl.static_range(2):
            weight = _half_step(
                codes,
                scales,
                minima,
                out,
                step,
                mask,
                in_features,
                HALF,
                BITS,
                GROUP,
                ZERO,
                HAS_MINIMUM,
                COLUMNS,
                STEPS,
            )
            column = tl.reshape(step[:, None] * 32 + 16 * HALF + lane[None, :], (16 * STEPS,))
            there = (row < num_rows)[:, None] & (column < in_features)[None, :]
            values = tl.load(x + row[:, None] * x_stride + column[None, :], mask=there, other=0.0)
            sums = dot(values, tl.trans(weight.to(values.dtype)), sums)
    there = (row < num_rows)[:, None] & (out < out_features)[None, :]
    tl.store(y + row[:, None] * out_features + out[None, :], sums.to(y.dtype.element_ty), mask=there)
