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

# The largest relative error of a row that packing may have made, by bits a weight from this many on. Measured on the
# weights of SmolLM2-135M (median and worst row over its embedding and four kinds of layers): 16 bits 0.002 and 0.002,
# Q8_0 0.006 and 0.011, Q6_K 0.023 and 0.036, Q5 0.044 and 0.085, Q4 0.089 and 0.175, 3 bits 0.19 and 0.30, 2 bits 0.31
# and 0.40. The bars are about 1.7 times the worst, as a quantizer that weighs columns leaves larger errors in the
# others; 1.5 times at 2 bits. Below that nothing was measured. A row that was made anew for an added token is off by 1,
# and by no less than 0.76.
BARS = ((16.0, 0.01), (8.0, 0.02), (6.1, 0.06), (5.2, 0.15), (4.2, 0.30), (3.0, 0.50), (2.4, 0.60), (0.0, 0.75))


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
