"""Where token ids, positions and slots of a pass are written, over and over, in place."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from inference_svc.kv_cache.block_table import BlockTable


class StepBuffers:
    """Rows of one pass; its tensors hold until the next pass is begun."""

    def __init__(self, block_size: int, device: torch.device) -> None:
        self._block_size = block_size
        self._device = device
        self._num_rows = 0
        self._views: tuple[Tensor, Tensor, Tensor] | None = None
        self._make_room(64)

    def begin(self, num_rows: int) -> None:
        """Make room for a pass of so many rows."""
        if num_rows > len(self._token_ids):
            self._make_room(max(num_rows, 2 * len(self._token_ids)))
        if num_rows != self._num_rows:
            self._num_rows = num_rows
            self._views = None

    def put(self, row: int, token_ids: list[int], positions: range, table: BlockTable, rotary_offset: int) -> None:
        """Write the rows of one sequence, from `row` on: its tokens at these positions, which lie in its blocks."""
        size, first = self._block_size, positions.start
        if len(positions) == 1:
            self._token_ids[row] = token_ids[0]
            self._positions[row] = first + rotary_offset
            self._slots[row] = table.ids[first // size] * size + first % size
            return
        rows, span = slice(row, row + len(positions)), np.arange(first, positions.stop)
        self._token_ids[rows] = token_ids
        self._positions[rows] = span + rotary_offset
        self._slots[rows] = table.as_array()[span // size] * size + span % size

    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """Token ids, positions and slots of the pass, int64 [num_rows] each, on the device."""
        if self._views is None:
            tokens, positions, slots = (torch.from_numpy(row[: self._num_rows]) for row in self._rows)
            self._views = tokens, positions, slots
        if self._device.type == "cpu":
            return self._views
        # A copy from pageable memory has been read when this returns: the next pass may write over it.
        tokens, positions, slots = torch.stack(self._views).to(self._device).unbind()
        return tokens, positions, slots

    def _make_room(self, num_rows: int) -> None:
        self._rows = np.empty((3, num_rows), dtype=np.int64)
        self._token_ids, self._positions, self._slots = self._rows
        self._views = None
