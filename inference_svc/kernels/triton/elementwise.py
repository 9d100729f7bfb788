"""Norm, rotation, gated activation, and keys and values into the cache: a program for each row, in float32."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_KINDS = {"silu": 0, "gelu": 1, "gelu_tanh": 2}
_BLOCK = 1024


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last axis of [num_tokens, width]; weight is float32 [width]."""
    num_rows, width = x.shape
    x = x if x.stride(1) == 1 else x.contiguous()
    y = torch.empty((num_rows, width), dtype=x.dtype, device=x.device)
    if num_rows:
        _rms_norm[(num_rows,)](x, weight, y, eps, width, x.stride(0), BLOCK=triton.next_power_of_2(width))
    return y


def rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the first 2n dimensions of [num_tokens, num_heads, head_dim] by cos and sin [num_tokens, n]."""
    num_rows, num_heads, head_dim = x.shape
    x = x if x.stride()[1:] == (head_dim, 1) else x.contiguous()
    y = torch.empty((num_rows, num_heads, head_dim), dtype=x.dtype, device=x.device)
    if num_rows:
        _rotary[(num_rows, num_heads)](
            x, cos, sin, y, x.stride(0), num_heads, head_dim, cos.shape[1], BLOCK=triton.next_power_of_2(head_dim)
        )
    return y


def gated(kind: str, gate: Tensor, up: Tensor) -> Tensor:
    """silu, gelu or gelu_tanh of the gate [num_tokens, width], times up [num_tokens, width]."""
    num_rows, width = gate.shape
    gate, up = (half if half.stride(1) == 1 else half.contiguous() for half in (gate, up))
    y = torch.empty((num_rows, width), dtype=gate.dtype, device=gate.device)
    if num_rows:
        _gated[(num_rows, triton.cdiv(width, _BLOCK))](
            gate, up, y, width, gate.stride(0), up.stride(0), KIND=_KINDS[kind], BLOCK=_BLOCK
        )
    return y


def write_cache(cached_keys: Tensor, cached_values: Tensor, slots: Tensor, keys: Tensor, values: Tensor) -> None:
    """Store [num_tokens, num_kv_heads, head_dim] at slots int64 [num_tokens] of one layer's cache.

    A negative slot is nobody's: the row is left out, as those that fill up a captured pass are.
    """
    num_rows, width = len(slots), keys.shape[1] * keys.shape[2]
    keys, values = (x if x.stride()[1:] == (x.shape[2], 1) else x.contiguous() for x in (keys, values))
    if num_rows:
        _write_cache[(num_rows,)](
            cached_keys,
            cached_values,
            slots,
            keys,
            values,
            width,
            keys.stride(0),
            values.stride(0),
            BLOCK=triton.next_power_of_2(width),
        )


@triton.jit
def tanh(x):
    """By exp, of what is never positive: it does not overflow."""
    small = tl.exp(-2.0 * tl.abs(x))
    size = (1.0 - small) / (1.0 + small)
    return tl.where(x < 0, -size, size)


@triton.jit
def _rms_norm(x, weight, y, eps, width, x_stride, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    there = column < width
    values = tl.load(x + row * x_stride + column, mask=there, other=0.0).to(tl.float32)
    factor = tl.rsqrt(tl.sum(values * values, axis=0) / width + eps)
    normed = values * factor * tl.load(weight + column, mask=there, other=0.0)
    tl.store(y + row * width + column, normed.to(y.dtype.element_ty), mask=there)


@triton.jit
def _rotary(x, cos, sin, y, x_stride, num_heads, head_dim, half, BLOCK: tl.constexpr):
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    column = tl.arange(0, BLOCK)
    there = column < head_dim
    is_first, is_rotated = column < half, column < 2 * half
    own = x + row * x_stride + head * head_dim
    values = tl.load(own + column, mask=there, other=0.0).to(tl.float32)
    partner = tl.load(own + tl.where(is_first, column + half, column - half), mask=is_rotated, other=0.0).to(tl.float32)
    angle = row * half + tl.where(is_first, column, column - half)
    c = tl.load(cos + angle, mask=is_rotated, other=1.0).to(tl.float32)
    s = tl.load(sin + angle, mask=is_rotated, other=0.0).to(tl.float32)
    rotated = values * c + tl.where(is_first, -partner, partner) * s
    tl.store(y + (row * num_heads + head) * head_dim + column, rotated.to(y.dtype.element_ty), mask=there)


@triton.jit
def _gated(gate, up, y, width, gate_stride, up_stride, KIND: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    there = column < width
    x = tl.load(gate + row * gate_stride + column, mask=there, other=0.0).to(tl.float32)
    if KIND == 0:
        active = x * tl.sigmoid(x)
    elif KIND == 1:
        active = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    else:
        active = 0.5 * x * (1.0 + tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)))
    product = active * tl.load(up + row * up_stride + column, mask=there, other=0.0).to(tl.float32)
    tl.store(y + row * width + column, product.to(y.dtype.element_ty), mask=there)


@triton.jit
def _write_cache(cached_keys, cached_values, slots, keys, values, width, key_stride, value_stride, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + row)
    column = tl.arange(0, BLOCK)
    there = column < width
    kind = cached_keys.dtype.element_ty
    if slot >= 0:
        key = tl.load(keys + row * key_stride + column, mask=there)
        value = tl.load(values + row * value_stride + column, mask=there)
        tl.store(cached_keys + slot * width + column, key.to(kind), mask=there)
        tl.store(cached_values + slot * width + column, value.to(kind), mask=there)
