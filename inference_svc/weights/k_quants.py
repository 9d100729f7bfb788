"""What the bits of llama.cpp's K-quants mean: blocks of 256 values with scales of their own for every 16 or 32.

Every function takes blocks uint8 [n, block_bytes] and gives their 256 codes each. Values are computed from them in
the order of operations of the gguf package (gguf/quants.py), so that results are equal to the bit. Layouts:
`block_q*_K` in llama.cpp's ggml-common.h.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from gguf import GGMLQuantizationType
from torch import Tensor

from inference_svc.weights.codes import Codes


def _half(bytes_: Tensor) -> Tensor:
    """uint8 [n, 2] -> float32 [n, 1]."""
    return bytes_.contiguous().view(torch.float16).float()


def _fields(bytes_: Tensor, run: int, shifts: tuple[int, ...], mask: int) -> Tensor:
    """uint8 [n, k * run] -> uint8 [n, k * len(shifts) * run]: run by run, the bits at each shift."""
    count, width = bytes_.shape  # never -1 in a shape: it has no meaning where there are no blocks
    runs = bytes_.reshape(count, width // run, run)
    return torch.stack([(runs >> shift) & mask for shift in shifts], dim=2).reshape(count, width * len(shifts))


def _six_bit_scales(bytes_: Tensor) -> tuple[Tensor, Tensor]:
    """uint8 [n, 12] -> scales and minima, uint8 [n, 8] each: four bits here, two at the top of another byte."""
    low, middle, high = bytes_[:, :4], bytes_[:, 4:8], bytes_[:, 8:]
    scales = torch.cat((low & 0x3F, (high & 0x0F) | ((low >> 2) & 0x30)), dim=1)
    minima = torch.cat((middle & 0x3F, (high >> 4) | ((middle >> 2) & 0x30)), dim=1)
    return scales, minima


def _q2_k(blocks: Tensor) -> Codes:
    scales = _half(blocks[:, 80:82]) * (blocks[:, :16] & 15)
    minima = _half(blocks[:, 82:84]) * (blocks[:, :16] >> 4)
    return Codes(_fields(blocks[:, 16:80], 32, (0, 2, 4, 6), 3), scales, minima.neg_())


def _q3_k(blocks: Tensor) -> Codes:
    packed = blocks[:, 96:108]
    low = _fields(packed[:, :8], 8, (0, 4), 15)
    high = _fields(packed[:, 8:], 4, (0, 2, 4, 6), 3)
    scales = _half(blocks[:, 108:110]) * ((low | (high << 4)).to(torch.int8) - 32)
    values = _fields(blocks[:, 32:96], 32, (0, 2, 4, 6), 3).to(torch.int8)
    # A bit that is not set takes 4 away.
    values -= (_fields(blocks[:, :32], 32, (0, 1, 2, 3, 4, 5, 6, 7), 1) ^ 1).to(torch.int8) << 2
    return Codes(values, scales)


def _q4_k(blocks: Tensor) -> Codes:
    return _with_minima(blocks, _fields(blocks[:, 16:144], 32, (0, 4), 15))


def _q5_k(blocks: Tensor) -> Codes:
    fifth = _fields(blocks[:, 16:48], 32, (0, 1, 2, 3, 4, 5, 6, 7), 1)
    return _with_minima(blocks, _fields(blocks[:, 48:176], 32, (0, 4), 15) | (fifth << 4))


def _with_minima(blocks: Tensor, values: Tensor) -> Codes:
    scales, minima = _six_bit_scales(blocks[:, 4:16])
    return Codes(values, _half(blocks[:, :2]) * scales, (_half(blocks[:, 2:4]) * minima).neg_())


def _q6_k(blocks: Tensor) -> Codes:
    low = _fields(blocks[:, :128], 64, (0, 4), 15)
    high = _fields(blocks[:, 128:192], 32, (0, 2, 4, 6), 3)
    scales = _half(blocks[:, 208:210]) * blocks[:, 192:208].contiguous().view(torch.int8)
    return Codes((low | (high << 4)).to(torch.int8) - 32, scales)


K_QUANTS: Mapping[GGMLQuantizationType, Callable[[Tensor], Codes]] = MappingProxyType(
    {
        GGMLQuantizationType.Q2_K: _q2_k,
        GGMLQuantizationType.Q3_K: _q3_k,
        GGMLQuantizationType.Q4_K: _q4_k,
        GGMLQuantizationType.Q5_K: _q5_k,
        GGMLQuantizationType.Q6_K: _q6_k,
    }
)
