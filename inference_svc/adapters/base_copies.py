"""Copies of base weights that PEFT saves beside an adapted head: checked against the base, then dropped.

PEFT writes `lm_head.base_layer.weight` (and the embedding) into the adapter's file whenever `lm_head` is a target. It
does not train them, so they must be the loaded model's own, up to its quantization; a vocabulary that was resized, or
another base model, is not.
"""

from __future__ import annotations

import torch
from gguf import GGMLQuantizationType
from torch import Tensor

from inference_svc.adapters.base_model import BaseModelShape
from inference_svc.adapters.dora import PIECE
from inference_svc.weights.quantization import QuantizedTensor, bits_of

# How far off a row may be, relative to its norm, by bits a weight from this many on. Each bar is at least 1.25 times
# the largest error that llama.cpp's quantizers make of rows of SmolLM2-135M and of normal random rows, with and without
# importances that weigh columns (tests/inference_svc/adapters/record_llamacpp_rows.py measures them): 8 bits 0.008,
# 6 bits 0.03, 5 bits 0.08, 4 bits 0.17, 3 bits 0.33, 2.6 bits 0.42, 2 bits 0.55, 1.6 bits 0.75. Of its embedding the
# row of another word is off by 1.3 in the median, the mean of all rows by 0.81 at least, zeros by 1. Below 1.9 bits a
# row that was set to the mean is not told from one that was packed, but another model is by its many other rows. The
# ternary types are for models that are ternary: of others they leave too little to compare with.
BARS = (
    (16.0, 0.01),
    (8.0, 0.02),
    (6.1, 0.06),
    (5.2, 0.15),
    (4.2, 0.30),
    (3.0, 0.50),
    (2.4, 0.60),
    (1.9, 0.75),
    (0.0, 0.95),
)


def copy_problem(path: str, copy: Tensor, base: BaseModelShape) -> str | None:
    """Why the copy is not the base's own weight of `path`, or None."""
    weight = base.weights.get(path)
    if weight is None:
        return "is the weight of a module that no adapter can change"
    if tuple(copy.shape) != weight.shape:
        return f"is a base weight of shape {list(copy.shape)}, the base model's is {list(weight.shape)}: it was resized"
    row = _first_row_off(weight, copy.to(base.device), bar_of(weight.precision))
    return None if row is None else f"is a base weight that differs from the base model's own at row {row}"


def bar_of(quantization: GGMLQuantizationType) -> float:
    """How far a row may be off that was packed in this type, relative to its norm."""
    # Q5_1 and Q4_1 spend half a bit on a minimum, and have no more levels than Q5_0 and Q4_0.
    bits = bits_of(quantization) - {GGMLQuantizationType.Q5_1: 0.5, GGMLQuantizationType.Q4_1: 0.5}.get(
        quantization, 0.0
    )
    return next(bar for least, bar in BARS if bits >= least)


def _first_row_off(weight: QuantizedTensor, copy: Tensor, bar: float) -> int | None:
    step = max(1, PIECE // weight.shape[1])
    for first in range(0, weight.shape[0], step):
        own = weight.part(first, step).dequantize()
        error = torch.linalg.vector_norm(copy[first : first + step].float() - own, dim=1)
        # NaN fails the comparison, so it is off too.
        off = ~(error <= bar * torch.linalg.vector_norm(own, dim=1) + 1e-6)
        if bool(off.any()):
            return first + int(off.to(torch.int8).argmax())
    return None
