"""The layout that products read quantized weights in: made once, when a model is loaded.

Every type becomes codes of 4 or 8 bits with a scale, and perhaps a minimum, for 16 or 32 neighbours: the same
mapping as in native/quantized.h, its numbers in native/sizes.py. Rows go along the columns in steps of 32. A step of
4-bit codes is 16 bytes, columns 0-15 in the low halves and 16-31 in the high ones, so that both halves are whole
runs of 16 columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from inference_svc.kernels.native.sizes import CODINGS, STEP_COLUMNS
from inference_svc.weights.quantization import QuantizedTensor

PIECE = 1 << 24  # numbers that are taken apart at once: as codes and more they need several bytes each
_SIGNED_ZERO = 8  # what a code of 4 bits without a minimum stands above its value


@dataclass(frozen=True, slots=True, eq=False)
class PackedWeight:
    """A weight [rows, columns]: (code - zero) * scale + minimum."""

    codes: Tensor  # 4 bits: uint8 [rows, columns / 2]; 8 bits: int8 [rows, columns]
    scales: Tensor  # float16, or float32 where that would lose something, [rows, columns / group]
    minima: Tensor | None  # like the scales
    shape: tuple[int, int]
    bits: int
    group: int
    zero: int


def pack(weight: QuantizedTensor) -> PackedWeight | None:
    """The weight in this layout; None: its type has no codes.

    Raises:
        WeightsError: its file cannot be read any more.
    """
    coding = CODINGS.get(weight.quantization.name)
    if coding is None:
        return None
    rows, columns = weight.shape
    is_small = coding.bits == 4
    zero = _SIGNED_ZERO if is_small and not coding.has_minimum else 0
    dtype, width = (torch.uint8, columns // 2) if is_small else (torch.int8, columns)
    codes = torch.empty((rows, width), dtype=dtype, device=weight.device)
    scales = torch.empty((rows, columns // coding.group), device=weight.device)
    minima = torch.empty_like(scales) if coding.has_minimum else None
    step = max(1, PIECE // columns)
    for first in range(0, rows, step):
        part = weight.part(first, step).codes()
        assert part is not None
        piece = slice(first, first + step)
        codes[piece] = _in_halves(part.codes + zero) if is_small else part.codes
        scales[piece] = part.scales
        if minima is not None:
            assert part.minima is not None
            minima[piece] = part.minima
    if _fit_half(scales) and (minima is None or _fit_half(minima)):
        scales, minima = scales.half(), None if minima is None else minima.half()
    return PackedWeight(codes, scales, minima, weight.shape, coding.bits, coding.group, zero)


def _in_halves(codes: Tensor) -> Tensor:
    """Codes of 4 bits [rows, columns] -> uint8 [rows, columns / 2]."""
    rows, columns = codes.shape
    steps = codes.to(torch.uint8).reshape(rows, columns // STEP_COLUMNS, 2, STEP_COLUMNS // 2)
    return (steps[:, :, 0] | steps[:, :, 1] << 4).reshape(rows, columns // 2)


def _fit_half(values: Tensor) -> bool:
    """All survive as halves nearly as exactly as a code with its scale is: see `fits_half` of quantized.h."""
    return bool(((values.half().float() - values).abs() <= values.abs() * 2**-10).all())
