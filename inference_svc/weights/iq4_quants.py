"""What the bits of llama.cpp's IQ4 types mean: four bits that choose one of sixteen values, and a scale for 32 of them.

Every function takes blocks uint8 [n, block_bytes] and gives their codes. Values are computed from them in the order
of operations of the gguf package (gguf/quants.py), so that results are equal to the bit. Layouts: `block_iq4_*` in
llama.cpp's ggml-common.h.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from types import MappingProxyType

import torch
from gguf import GGMLQuantizationType
from torch import Tensor

from inference_svc.weights.codes import Codes

# `kvalues_iq4nl`: close together around zero, where most weights are.
LEVELS = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)


def _half(bytes_: Tensor) -> Tensor:
    """uint8 [n, 2] -> float32 [n, 1]."""
    return bytes_.contiguous().view(torch.float16).float()


def _levels(bytes_: Tensor) -> Tensor:
    """uint8 [n, 16 k] -> int8 [n, 32 k]: sixteen low nibbles, then their high ones."""
    count, width = bytes_.shape
    runs = bytes_.reshape(count, width // 16, 16)
    chosen = torch.cat((runs & 15, runs >> 4), dim=2).reshape(count, 2 * width)
    return _table(bytes_.device)[chosen.int()]


@cache
def _table(device: torch.device) -> Tensor:
    return torch.tensor(LEVELS, dtype=torch.int8, device=device)


def _iq4_nl(blocks: Tensor) -> Codes:
    return Codes(_levels(blocks[:, 2:]), _half(blocks[:, :2]))


def _iq4_xs(blocks: Tensor) -> Codes:
    shifts = torch.arange(0, 8, 2, dtype=torch.uint8, device=blocks.device)
    high = ((blocks[:, 2:4, None] >> shifts) & 3).reshape(-1, 8)
    low = torch.stack((blocks[:, 4:8] & 15, blocks[:, 4:8] >> 4), dim=2).reshape(-1, 8)
    scales = _half(blocks[:, :2]) * ((low | (high << 4)).to(torch.int8) - 32)
    return Codes(_levels(blocks[:, 8:]), scales)


IQ4_QUANTS: Mapping[GGMLQuantizationType, Callable[[Tensor], Codes]] = MappingProxyType(
    {GGMLQuantizationType.IQ4_NL: _iq4_nl, GGMLQuantizationType.IQ4_XS: _iq4_xs}
)
