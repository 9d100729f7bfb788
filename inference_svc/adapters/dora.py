"""DoRA (arXiv 2402.09353): the norms of the adapted weight, once at load.

A DoRA layer is y = g * (W x + s B A x) with g = magnitude / |W + s B A|, a number for each row of W. As a delta over
the base's own output it is (g - 1) * W x + g * s B A x. The first term needs no more than the base's output, so a
quantized base is unpacked for the norms alone, a few rows at a time.
"""

from __future__ import annotations

import torch
from torch import Tensor

from inference_svc.weights.quantization import QuantizedTensor

# Numbers unpacked at once: a piece takes about a millisecond, so that the threads that decode are not held up.
PIECE = 1 << 18


def magnitude_ratios(weight: QuantizedTensor, a: Tensor, b: Tensor, magnitude: Tensor) -> Tensor:
    """g of every row: float32 [out_features]; not finite where the adapted row is zero.

    Source: `DoraLinearLayer.forward` of PEFT.

    Args:
        weight: the base's [out_features, in_features].
        a: float32 [rank, in_features].
        b: float32 [out_features, rank], its scale folded in.
        magnitude: float32 [out_features].
    """
    step = max(1, PIECE // weight.shape[1])
    norms = torch.empty_like(magnitude)
    for first in range(0, weight.shape[0], step):
        rows = slice(first, first + step)
        adapted = torch.addmm(weight.part(first, step).dequantize(), b[rows], a)
        norms[rows] = torch.linalg.vector_norm(adapted, dim=1)
    return magnitude / norms
