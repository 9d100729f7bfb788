"""Packed tensors and what their bits mean: dequantization in torch, bit-equal to the gguf package in float32."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import gguf.quants
import numpy as np
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from torch import Tensor

from inference_svc.weights.k_quants import K_QUANTS

_PLAIN = {
    GGMLQuantizationType.F32: torch.float32,
    GGMLQuantizationType.F16: torch.float16,
    GGMLQuantizationType.BF16: torch.bfloat16,
}


def is_supported(quantization: GGMLQuantizationType) -> bool:
    """There is a way to dequantize the type."""
    if quantization in _PLAIN or quantization in _UNPACKERS:
        return True
    try:
        gguf.quants.dequantize(np.zeros((1, GGML_QUANT_SIZES[quantization][1]), np.uint8), quantization)
    except NotImplementedError:
        return False
    return True


@dataclass(frozen=True, slots=True, eq=False)
class QuantizedTensor:
    """A matrix as it is packed in a GGUF file: each row is a run of blocks."""

    data: Tensor  # uint8 [rows, row_bytes]
    quantization: GGMLQuantizationType
    shape: tuple[int, int]  # (rows, columns)

    @property
    def nbytes(self) -> int:
        """Bytes of the packed data."""
        return self.data.numel()

    @property
    def device(self) -> torch.device:
        """Where the data lies."""
        return self.data.device

    def to(self, device: torch.device) -> QuantizedTensor:
        """The same on another device."""
        return QuantizedTensor(self.data.to(device), self.quantization, self.shape)

    def take_rows(self, rows: Tensor) -> QuantizedTensor:
        """Rows int64 [n] in that order, still packed: blocks run along rows, so rows can be moved."""
        return QuantizedTensor(self.data.index_select(0, rows), self.quantization, (len(rows), self.shape[1]))

    def part(self, first: int, count: int) -> QuantizedTensor:
        """Up to `count` rows from `first` on, still packed; shares the memory."""
        data = self.data[first : first + count]
        return QuantizedTensor(data, self.quantization, (len(data), self.shape[1]))

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """[rows, columns]; computed in float32."""
        return _unpack(self.data, self.quantization, self.shape[1]).to(dtype)

    def dequantize_rows(self, rows: Tensor) -> Tensor:
        """float32 [len(rows), columns] of rows int64 [n]: an embedding lookup."""
        return _unpack(self.data.index_select(0, rows), self.quantization, self.shape[1])


def _unpack(data: Tensor, quantization: GGMLQuantizationType, columns: int) -> Tensor:
    if quantization in _PLAIN:
        return data.contiguous().view(_PLAIN[quantization]).float()
    unpack = _UNPACKERS.get(quantization)
    if unpack is None:
        if not len(data):  # the gguf package stumbles over no rows
            return torch.empty((0, columns), device=data.device)
        dense = torch.from_numpy(gguf.quants.dequantize(data.cpu().numpy(), quantization))
        return dense.to(data.device).reshape(-1, columns)
    blocks = data.reshape(-1, GGML_QUANT_SIZES[quantization][1])
    return unpack(blocks).reshape(-1, columns)


def _half(bytes_: Tensor) -> Tensor:
    """uint8 [n, 2k] -> float32 [n, k]."""
    return bytes_.contiguous().view(torch.float16).float()


def _nibbles(bytes_: Tensor) -> Tensor:
    """uint8 [n, 16] -> uint8 [n, 32]: the low nibbles, then the high ones."""
    return torch.cat((bytes_ & 15, bytes_ >> 4), dim=1)


def _fifth_bits(bytes_: Tensor) -> Tensor:
    """uint8 [n, 4] -> uint8 [n, 32]: one bit a value, shifted to bit 4."""
    shifts = torch.arange(8, dtype=torch.uint8, device=bytes_.device)
    return ((bytes_[:, :, None] >> shifts) & 1).reshape(-1, 32) << 4


def _q4_0(blocks: Tensor) -> Tensor:
    return (_nibbles(blocks[:, 2:]).to(torch.int8) - 8).float().mul_(_half(blocks[:, :2]))


def _q4_1(blocks: Tensor) -> Tensor:
    # In place, and widened first: a product of two types makes a copy of its own. Not addcmul, which may round once.
    return _nibbles(blocks[:, 4:]).float().mul_(_half(blocks[:, :2])).add_(_half(blocks[:, 2:4]))


def _q5_0(blocks: Tensor) -> Tensor:
    values = _nibbles(blocks[:, 6:]) | _fifth_bits(blocks[:, 2:6])
    return (values.to(torch.int8) - 16).float().mul_(_half(blocks[:, :2]))


def _q5_1(blocks: Tensor) -> Tensor:
    values = _nibbles(blocks[:, 8:]) | _fifth_bits(blocks[:, 4:8])
    return values.float().mul_(_half(blocks[:, :2])).add_(_half(blocks[:, 2:4]))


def _q8_0(blocks: Tensor) -> Tensor:
    return blocks[:, 2:].contiguous().view(torch.int8).float().mul_(_half(blocks[:, :2]))


_UNPACKERS: dict[GGMLQuantizationType, Callable[[Tensor], Tensor]] = {
    GGMLQuantizationType.Q4_0: _q4_0,
    GGMLQuantizationType.Q4_1: _q4_1,
    GGMLQuantizationType.Q5_0: _q5_0,
    GGMLQuantizationType.Q5_1: _q5_1,
    GGMLQuantizationType.Q8_0: _q8_0,
    **K_QUANTS,
}
