"""Which rows of a pass are changed by which banks, written down as the kernels of `deltas.py` read it.

Rows that the same banks change are put together in tiles of up to ROWS rows. A tile with one of its banks is a pair,
and a pair is what A x is computed for; B then goes through the pairs of a tile in the order of the banks, so that
what is added to a row, and in which order, never depends on other rows. What a bank does to a linear layer stands in
a descriptor, of numbers and addresses: kernels see tensors of any number of banks through one argument.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from inference_svc.adapters.bank import AdapterBank
from inference_svc.layers.batch import AdapterRows

ROWS = 16  # of a tile, and the least that a product on tensor cores takes
RANKS = 16  # that are computed at once

# Fields of a descriptor: addresses of A, B and the experts of ranks, the rank, the address of the scalings of the first
# row, numbers between the scalings of one row and the next.
A, B, EXPERTS, RANK, SCALINGS, SCALING_STRIDE, FIELDS = range(7)


@dataclass(frozen=True, slots=True)
class Room:
    """How much a table holds. What a captured pass reads has room for more than most passes need."""

    tiles: int
    pairs: int
    banks: int
    layers: int
    ranks: int  # of one bank on one layer, a multiple of RANKS

    def holds(self, other: Room) -> bool:
        """There is as much room as in the other."""
        return all(getattr(self, item.name) >= getattr(other, item.name) for item in fields(self))


@dataclass(frozen=True, slots=True, eq=False)
class DeltaTable:
    """The changes of one pass; tensors on its device, int32 where nothing else is said."""

    room: Room
    rows: Tensor  # [tiles, ROWS]: rows of the pass, -1 where the tile is not full
    first_pair: Tensor  # [tiles + 1]: pairs of a tile are neighbours
    pair_tile: Tensor  # [pairs]
    pair_bank: Tensor  # [pairs], -1: no pair
    places: Tensor  # [pairs, ROWS]: where the scalings of a row stand in those of its bank
    descriptors: Tensor  # int64 [layers, banks, FIELDS]
    changed: Sequence[bool]  # [layers]: some bank changes the layer
    has_dora: bool  # which is not in the table
    kept: Sequence[Tensor] = ()  # what descriptors point to, and nobody else keeps

    def copy_(self, other: DeltaTable) -> None:
        """Take over another table, which this one has room for, in place."""
        for item in fields(self):
            own, its = getattr(self, item.name), getattr(other, item.name)
            if isinstance(own, Tensor):
                own.copy_(its)


class DeltaTables:
    """Makes tables, and gives out the last one again for adapters that are the very same."""

    def __init__(self) -> None:
        self.layers: dict[str, int] = {}  # path of a linear layer -> its number in descriptors
        # By the first adapter rows of a pass, with which the others come and go; a table keeps no bank alive.
        self._tables: weakref.WeakKeyDictionary[AdapterRows, tuple[tuple[int, ...], DeltaTable]]
        self._tables = weakref.WeakKeyDictionary()
        self._entries: weakref.WeakKeyDictionary[AdapterBank, tuple[NDArray[np.int64], ...]]
        self._entries = weakref.WeakKeyDictionary()

    def of(self, adapters: tuple[AdapterRows, ...]) -> DeltaTable:
        """The table of a pass with at least one adapter, with no more room than it needs."""
        same = tuple(map(id, adapters))
        known = self._tables.get(adapters[0])
        if known is None or known[0] != same:
            known = same, self._build(adapters)
            self._tables[adapters[0]] = known
        return known[1]

    def in_room(self, adapters: tuple[AdapterRows, ...], room: Room) -> DeltaTable:
        """The same in a room that holds it."""
        return self._build(adapters, room)

    def _build(self, adapters: tuple[AdapterRows, ...], room: Room | None = None) -> DeltaTable:
        device = adapters[0].scalings.device
        tiles = _tiles(adapters)
        pairs = [(tile, *pair) for tile, (_, parts) in enumerate(tiles) for pair in parts]
        entries = [self._of_bank(item.bank) for item in adapters]
        highest = max((int(numbers[:, RANK].max(initial=0)) for numbers, _ in entries), default=0)
        ranks = max(1, -(-highest // RANKS)) * RANKS
        room = room or Room(len(tiles), len(pairs), len(adapters), len(self.layers), ranks)

        rows = np.full((room.tiles, ROWS), -1, np.int32)
        first_pair = np.full(room.tiles + 1, len(pairs), np.int32)
        pair_tile, pair_bank = np.zeros(room.pairs, np.int32), np.full(room.pairs, -1, np.int32)
        places = np.zeros((room.pairs, ROWS), np.int32)
        count = 0
        for tile, (own, parts) in enumerate(tiles):
            rows[tile, : len(own)] = own
            first_pair[tile] = count
            count += len(parts)
        for pair, (tile, bank, place) in enumerate(pairs):
            pair_tile[pair], pair_bank[pair] = tile, bank
            places[pair, : len(place)] = place

        descriptors = np.zeros((room.layers, room.banks, FIELDS), np.int64)
        kept = []
        for bank, (item, (numbers, layers)) in enumerate(zip(adapters, entries, strict=True)):
            scalings = item.scalings.float().contiguous()  # [num_rows, 1 or num_layers, num_experts]
            kept.append(scalings)
            descriptors[layers, bank] = numbers
            offset = numbers[:, SCALINGS] if scalings.shape[1] > 1 else 0
            descriptors[layers, bank, SCALINGS] = scalings.data_ptr() + 4 * scalings.shape[2] * offset
            descriptors[layers, bank, SCALING_STRIDE] = scalings.shape[1] * scalings.shape[2]

        whole = np.concatenate([part.ravel() for part in (rows, first_pair, pair_tile, pair_bank, places)])
        parts = (
            torch.from_numpy(whole)
            .to(device)
            .split(  # one transfer
                [rows.size, first_pair.size, pair_tile.size, pair_bank.size, places.size]
            )
        )
        return DeltaTable(
            room,
            parts[0].view(rows.shape),
            parts[1],
            parts[2],
            parts[3],
            parts[4].view(places.shape),
            torch.from_numpy(descriptors).to(device),
            [bool(layer.any()) for layer in descriptors[:, :, RANK]],
            any(len(layers) < len(item.bank.deltas) for item, (_, layers) in zip(adapters, entries, strict=True)),
            kept,
        )

    def _of_bank(self, bank: AdapterBank) -> tuple[NDArray[np.int64], ...]:
        """Descriptors [layers of the bank, FIELDS] that hold scaling rows for addresses, and the layers' numbers.

        A DoRA is not in them: it needs what the base puts out.
        """
        known = self._entries.get(bank)
        if known is None:
            numbers, layers = [], []
            for path, delta in bank.deltas.items():
                if delta.base_factor is not None:
                    continue
                assert delta.a.is_contiguous(), path
                assert delta.b.is_contiguous(), path
                experts = delta.expert_of_rank.data_ptr()
                rank, row = delta.a.shape[0], bank.scaling_rows.get(path, 0)
                numbers.append((delta.a.data_ptr(), delta.b.data_ptr(), experts, rank, row, 0))
                layers.append(self.layers.setdefault(path, len(self.layers)))
            known = np.array(numbers, np.int64).reshape(-1, FIELDS), np.array(layers, np.int64)
            self._entries[bank] = known
        return known


def _tiles(adapters: tuple[AdapterRows, ...]) -> list[tuple[NDArray[np.int64], list[tuple[int, NDArray[np.int64]]]]]:
    """Rows of each tile, and each of its banks with the places of these rows in it."""
    counts = [len(item.rows) for item in adapters]
    every = torch.cat([item.rows for item in adapters]).cpu().numpy()  # one transfer
    places = np.full((len(adapters), int(every.max(initial=-1)) + 1), -1, np.int64)
    for bank, rows in enumerate(np.split(every, np.cumsum(counts)[:-1])):
        places[bank, rows] = np.arange(len(rows))
    tiles = []
    combinations, which = np.unique(places >= 0, axis=1, return_inverse=True)
    for number, combination in enumerate(combinations.T):
        banks = combination.nonzero()[0].tolist()
        rows = (which.ravel() == number).nonzero()[0]
        if banks:
            for first in range(0, len(rows), ROWS):
                own = rows[first : first + ROWS]
                tiles.append((own, [(bank, places[bank, own]) for bank in banks]))
    return tiles
