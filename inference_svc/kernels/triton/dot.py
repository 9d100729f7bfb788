"""The product on tensor cores that the other kernels are made of."""

from __future__ import annotations

import triton
import triton.language as tl

_IS_INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


@triton.jit
def dot(a, b, sums):
    """sums + a b in float32: [m, k] by [k, n], each at least 16 long."""
    if _IS_INTERPRETED:  # it would take the bits of bfloat16 for whole numbers
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    # ieee: float32 stays float32, where tensor cores would take 10 bits of it.
    return tl.dot(a, b, sums, input_precision="ieee")
