"""Packed tensors and what their bits mean: dequantization in torch, bit-equal to the gguf package in float32."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import gguf.quants
import numpy as np
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from torch import Tensor

from inference_svc.weights.codes import Codes
from inference_svc.weights.iq4_quants import IQ4_QUANTS
from inference_svc.weights.k_quants import K_QUANTS

_PLAIN = {
    GGMLQuantizationType.F32: torch.float32,
    GGMLQuantizationType.F16: torch.float16,
    GGMLQuantizationType.BF16: torch.bfloat16,
}
# Of the types that are unpacked, those whose values half a float can hold: scales have few bits, or codes only a sign.
_SMALL = {
    GGMLQuantizationType.TQ1_0: GGMLQuantizationType.F16,
    GGMLQuantizationType.TQ2_0: GGMLQuantizationType.F16,
    GGMLQuantizationType.MXFP4: GGMLQuantizationType.BF16,
    GGMLQuantizationType.NVFP4: GGMLQuantizationType.BF16,
}


def stays_packed(quantization: GGMLQuantizationType) -> bool:
    """Tensors of the type are kept as they are in the file; others are unpacked once, when they are loaded."""
    return quantization in _PLAIN or quantization in _DECODERS


def type_in_memory(quantization: GGMLQuantizationType, *, exact: bool) -> GGMLQuantizationType:
    """What a tensor of the type is once it is loaded: itself, or a float type that it is unpacked to.

    Args:
        quantization: in the file.
        exact: every value stays as it is; else float16 may round it to 11 bits, which is less than 2^-11 of itself, a
            tenth and less of what the packing has moved it.
    """
    if stays_packed(quantization):
        return quantization
    return _SMALL.get(quantization, GGMLQuantizationType.F32 if exact else GGMLQuantizationType.F16)


def bits_of(quantization: GGMLQuantizationType) -> float:
    """Bits that a value takes in the type, scales included."""
    block, block_bytes = GGML_QUANT_SIZES[quantization]
    return float(8 * block_bytes / block)


def largest_value(quantization: GGMLQuantizationType) -> float:
    """The largest number that a tensor of the type can hold; packed types have scales of float16."""
    return torch.finfo(_PLAIN.get(quantization, torch.float16)).max


def from_floats(values: Tensor, quantization: GGMLQuantizationType) -> Tensor:
    """float32 [rows, columns] -> uint8 [rows, row_bytes] of a float type."""
    return values.to(_PLAIN[quantization]).view(torch.uint8)


def is_supported(quantization: GGMLQuantizationType) -> bool:
    """There is a way to dequantize the type."""
    if stays_packed(quantization):
        return True
    try:
        gguf.quants.dequantize(np.zeros((1, GGML_QUANT_SIZES[quantization][1]), np.uint8), quantization)
    except NotImplementedError:
        return False
    return True


class PackedRows(Protocol):
    """Where the packed rows of a matrix can be read again: in practice, its file."""

    def read(self, first: int, count: int) -> Tensor:
        """uint8 [count, row_bytes] of neighbouring rows. Raises WeightsError."""
        ...

    def gather(self, rows: Tensor) -> Tensor:
        """uint8 [len(rows), row_bytes] of rows int64 [n] anywhere. Raises WeightsError."""
        ...

    def part(self, first: int, count: int) -> PackedRows:
        """Neighbouring rows alone."""
        ...

    def reordered(self, rows: Tensor) -> PackedRows:
        """Rows int64 [n] in that order."""
        ...


class QuantizedTensor:
    """A matrix as it is packed in a GGUF file: each row is a run of blocks.

    Its data is in memory, or is read from where it came from (`rows`) whenever it is used. A kernel that keeps weights
    in a layout of its own releases the data of those that it has repacked. What reads a tensor that is not resident
    raises WeightsError if its file cannot be read any more, or has changed.
    """

    __slots__ = ("_data", "_rows", "device", "precision", "quantization", "shape")

    def __init__(
        self,
        data: Tensor | None,
        quantization: GGMLQuantizationType,
        shape: tuple[int, int],
        rows: PackedRows | None = None,
        device: torch.device | None = None,
        precision: GGMLQuantizationType | None = None,
    ) -> None:
        """Of data uint8 [rows, row_bytes], or of `rows` that are read later, or both.

        Args:
            data: None: not resident.
            quantization: what the bytes mean.
            shape: (rows, columns).
            rows: where the same data can be read again; None: nowhere.
            device: where data goes that is read later; that of `data`, or the CPU.
            precision: the type that it was unpacked from: how exact the values are; None: `quantization`.
        """
        assert data is not None or rows is not None
        self._data = data
        self._rows = rows
        self.quantization = quantization
        self.precision = quantization if precision is None else precision
        self.shape = shape
        self.device = data.device if data is not None else device or torch.device("cpu")

    @property
    def data(self) -> Tensor:
        """uint8 [rows, row_bytes]; read for this caller alone if it is not resident."""
        if self._data is not None:
            return self._data
        assert self._rows is not None
        return self._rows.read(0, self.shape[0]).to(self.device)

    @property
    def is_resident(self) -> bool:
        """Its data is in memory."""
        return self._data is not None

    @property
    def nbytes(self) -> int:
        """Bytes of the packed data, wherever it is."""
        block, block_bytes = GGML_QUANT_SIZES[self.quantization]
        return int(self.shape[0] * (self.shape[1] // block * block_bytes))

    def resident(self) -> QuantizedTensor:
        """The same with its data in memory."""
        return self if self._data is not None else self._with(self.data, self._rows, self.shape[0])

    def release(self) -> None:
        """Give the memory of the data back, if it can be read again."""
        if self._rows is not None:
            self._data = None

    def to(self, device: torch.device) -> QuantizedTensor:
        """The same on another device."""
        data = None if self._data is None else self._data.to(device)
        return QuantizedTensor(data, self.quantization, self.shape, self._rows, device, self.precision)

    def take_rows(self, rows: Tensor) -> QuantizedTensor:
        """Rows int64 [n] in that order, still packed: blocks run along rows, so rows can be moved."""
        data = None if self._data is None else self._data.index_select(0, rows)
        return self._with(data, None if self._rows is None else self._rows.reordered(rows), len(rows))

    def part(self, first: int, count: int) -> QuantizedTensor:
        """Up to `count` rows from `first` on, still packed; shares the memory if this is resident."""
        count = max(0, min(count, self.shape[0] - first))
        data = None if self._data is None else self._data[first : first + count]
        return self._with(data, None if self._rows is None else self._rows.part(first, count), count)

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """[rows, columns]; computed in float32."""
        if self.quantization in _PLAIN:  # without a copy in float32 between, which would round no differently
            return self.data.contiguous().view(_PLAIN[self.quantization]).to(dtype)
        return _unpack(self.data, self.quantization, self.shape[1]).to(dtype)

    def codes(self) -> Codes | None:
        """Codes [rows, columns], scales and minima [rows, groups]; None: the type has none."""
        decode = _DECODERS.get(self.quantization)
        if decode is None:
            return None
        rows, columns = self.shape
        coded = decode(self.data.reshape(-1, GGML_QUANT_SIZES[self.quantization][1]))
        groups = coded.scales.numel() // rows
        minima = None if coded.minima is None else coded.minima.reshape(rows, groups)
        return Codes(coded.codes.reshape(rows, columns), coded.scales.reshape(rows, groups), minima)

    def dequantize_rows(self, rows: Tensor) -> Tensor:
        """float32 [len(rows), columns] of rows int64 [n]: an embedding lookup."""
        if self._data is not None:
            data = self._data.index_select(0, rows)
        else:
            assert self._rows is not None
            data = self._rows.gather(rows).to(self.device)
        return _unpack(data, self.quantization, self.shape[1])

    def _with(self, data: Tensor | None, rows: PackedRows | None, num_rows: int) -> QuantizedTensor:
        return QuantizedTensor(data, self.quantization, (num_rows, self.shape[1]), rows, self.device, self.precision)


def _unpack(data: Tensor, quantization: GGMLQuantizationType, columns: int) -> Tensor:
    if quantization in _PLAIN:
        return data.contiguous().view(_PLAIN[quantization]).float()
    decode = _DECODERS.get(quantization)
    if decode is None:
        if not len(data):  # the gguf package stumbles over no rows
            return torch.empty((0, columns), device=data.device)
        dense = torch.from_numpy(gguf.quants.dequantize(data.cpu().numpy(), quantization))
        return dense.to(data.device).reshape(-1, columns)
    return decode(data.reshape(-1, GGML_QUANT_SIZES[quantization][1])).values().reshape(-1, columns)


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


def _q4_0(blocks: Tensor) -> Codes:
    return Codes(_nibbles(blocks[:, 2:]).to(torch.int8) - 8, _half(blocks[:, :2]))


def _q4_1(blocks: Tensor) -> Codes:
    return Codes(_nibbles(blocks[:, 4:]), _half(blocks[:, :2]), _half(blocks[:, 2:4]))


def _q5_0(blocks: Tensor) -> Codes:
    values = _nibbles(blocks[:, 6:]) | _fifth_bits(blocks[:, 2:6])
    return Codes(values.to(torch.int8) - 16, _half(blocks[:, :2]))


def _q5_1(blocks: Tensor) -> Codes:
    values = _nibbles(blocks[:, 8:]) | _fifth_bits(blocks[:, 4:8])
    return Codes(values, _half(blocks[:, :2]), _half(blocks[:, 2:4]))


def _q8_0(blocks: Tensor) -> Codes:
    return Codes(blocks[:, 2:].contiguous().view(torch.int8), _half(blocks[:, :2]))


_DECODERS: dict[GGMLQuantizationType, Callable[[Tensor], Codes]] = {
    GGMLQuantizationType.Q4_0: _q4_0,
    GGMLQuantizationType.Q4_1: _q4_1,
    GGMLQuantizationType.Q5_0: _q5_0,
    GGMLQuantizationType.Q5_1: _q5_1,
    GGMLQuantizationType.Q8_0: _q8_0,
    **IQ4_QUANTS,
    **K_QUANTS,
}
