"""Copies of base weights that PEFT saves beside an adapted head: checked against the base, then dropped.

PEFT writes `lm_head.base_layer.weight` (and the embedding) into the adapter's file whenever `lm_head` is a target. It
does not train them, so they must be the loaded model's own, up to its quantization; a vocabulary that was resized, or
another base model, is not.
"""

from __future__ import annotations

import torch
from torch import Tensor

from inference_svc.adapters.base_model import BaseModelShape
from inference_svc.adapters.dora import PIECE
from inference_svc.weights.quantization import QuantizedTensor

# Relative error of a row. Rounding to bfloat16 makes 4e-3, four bits a weight about 0.1, two bits about 0.4; a row of
# another model, or one that was made anew for an added token, is off by 1 and more.
DENSE_BAR = 0.02
QUANTIZED_BAR = 0.5


def copy_problem(path: str, copy: Tensor, base: BaseModelShape) -> str | None:
    """Why the copy is not the base's own weight of `path`, or None."""
    weight = base.weights.get(path)
    if weight is None:
        return "is the weight of a module that no adapter can change"
    if tuple(copy.shape) != weight.shape:
        return f"is a base weight of shape {list(copy.shape)}, the base model's is {list(weight.shape)}: it was resized"
    bar = QUANTIZED_BAR if base.is_quantized else DENSE_BAR
    row = _first_row_off(weight, copy.to(base.device), bar)
    return None if row is None else f"is a base weight that differs from the base model's own at row {row}"


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
