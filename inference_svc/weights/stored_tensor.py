"""Where a tensor lies in a file, and its rows read from there when they are asked for."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from torch import Tensor

from inference_svc.weights.quantization import QuantizedTensor


class ReadableFile(Protocol):
    """A file that is read by position: one of this machine, or of a hub."""

    @property
    def path(self) -> Path:
        """What messages call it."""
        ...

    def read_into(self, offset: int, buffer: memoryview, what: str) -> None:
        """Fill writable bytes from a position on; `what` is what an error calls them. Raises WeightsError."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class StoredTensor:
    """A tensor of a checked header."""

    name: str
    shape: tuple[int, ...]  # slowest axis first, as in torch: (out_features, in_features)
    quantization: GGMLQuantizationType
    nbytes: int
    file: ReadableFile
    offset: int  # from the start of the file

    def unread(self) -> QuantizedTensor:
        """The tensor as a matrix whose rows are read whenever they are used; all axes before the last are its rows."""
        columns = self.shape[-1] if self.shape else 1
        block, block_bytes = GGML_QUANT_SIZES[self.quantization]
        shape = (math.prod(self.shape[:-1]), columns)
        rows = StoredRows(self, columns // block * block_bytes)
        return QuantizedTensor(None, self.quantization, shape, rows)

    def read(self) -> QuantizedTensor:
        """The same, read into memory.

        Raises:
            FileMissing, FileChanged: the file cannot be read, or is not what it was when it was opened.
        """
        return self.unread().resident()


@dataclass(frozen=True, slots=True, eq=False)
class StoredRows:
    """Packed rows in a file: neighbours from `first` on, or those that `order` names."""

    tensor: StoredTensor
    row_bytes: int
    first: int = 0
    order: Tensor | None = None  # int64 [num_rows]: which row of the file each row is

    def read(self, first: int, count: int) -> Tensor:
        """uint8 [count, row_bytes] of neighbouring rows: one read of all that lies between them in the file."""
        if self.order is None:
            return self._span(self.first + first, count)
        wanted = self.order[first : first + count]
        if not len(wanted):
            return self._span(0, 0)
        start, end = int(wanted.min()), int(wanted.max()) + 1
        return self._span(start, end - start).index_select(0, wanted - start)

    def gather(self, rows: Tensor) -> Tensor:
        """uint8 [len(rows), row_bytes] of rows int64 [n] anywhere: one read for each."""
        wanted = rows.cpu() + self.first if self.order is None else self.order.index_select(0, rows.cpu())
        data = torch.empty((len(wanted), self.row_bytes), dtype=torch.uint8)
        for row, place in zip(data, wanted.tolist(), strict=True):
            self._read_into(row, place)
        return data

    def part(self, first: int, count: int) -> StoredRows:
        """Neighbouring rows alone."""
        if self.order is None:
            return StoredRows(self.tensor, self.row_bytes, self.first + first)
        return StoredRows(self.tensor, self.row_bytes, order=self.order[first : first + count])

    def reordered(self, rows: Tensor) -> StoredRows:
        """Rows int64 [n] in that order."""
        order = rows + self.first if self.order is None else self.order.index_select(0, rows)
        return StoredRows(self.tensor, self.row_bytes, order=order)

    def _span(self, first: int, count: int) -> Tensor:
        data = torch.empty((count, self.row_bytes), dtype=torch.uint8)
        self._read_into(data.view(-1), first)
        return data

    def _read_into(self, data: Tensor, first: int) -> None:
        # Straight into the tensor: no second copy.
        offset = self.tensor.offset + first * self.row_bytes
        self.tensor.file.read_into(offset, data.numpy().data, f"tensor {self.tensor.name!r}")
