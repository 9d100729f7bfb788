"""Passes of few rows as CUDA graphs: launching a kernel costs the host more than such a pass costs the device.

A graph repeats the launches of one pass with the same arguments, so what differs from pass to pass lies in tensors
that each pass fills in: tokens, positions, slots, where queries and keys lie, which adapters change which rows. They
have room for a power of two of rows, of cache blocks and of ranks; a graph is captured when a size first comes up.
Rows that nobody has fill a pass up: their keys and values are written nowhere, and what comes out for them is not
looked at.

Never run on a GPU so far: tests put a stand-in in the place of the capture. So these are taken by name only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from inference_svc.adapters.bank import AdapterBank
from inference_svc.kernels.triton.attention_table import SPLIT, AttentionTable
from inference_svc.kernels.triton.delta_table import DeltaTable, Room
from inference_svc.kernels.triton.kernels import TritonKernels
from inference_svc.kernels.triton.weights import LinearLayers
from inference_svc.kv_cache.cache import KVCache
from inference_svc.layers.batch import AdapterRows, AttentionSegment, ForwardBatch
from inference_svc.layers.eager import EagerExecutor, EagerForward
from inference_svc.models.definition import ModelDefinition

MAX_ROWS = 64  # of a pass that is captured: with more, the device is what takes time
# Captures a pass: gives what runs it again, and the tensor that it then writes its result to.
Capture = Callable[[Callable[[], Tensor]], tuple[Callable[[], None], Tensor]]


def capture_graph(run: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
    """Capture a pass on the current CUDA device, after one that compiles its kernels."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = run()
    return graph.replay, output


class GraphExecutor:
    """Runs passes of few rows from graphs, and all others eagerly."""

    name = "triton-graphs"
    separates_prompts = False

    def __init__(
        self, model: ModelDefinition, kernels: TritonKernels, dtype: torch.dtype, capture: Capture = capture_graph
    ) -> None:
        self.dtype = self.cache_dtype = dtype
        self.batch_invariant = kernels.batch_invariant
        self._eager = EagerExecutor(model, kernels, dtype)
        self._kernels = kernels
        self._capture = capture
        self._graphs: dict[tuple[int, int, bool, int], _Graph] = {}
        self._cache: KVCache | None = None
        config = model.config
        self._group = config.num_heads // config.num_kv_heads
        self._has_experts = config.num_experts > 0  # which rows they get, the host must know
        for layer in LinearLayers(model).layers:
            kernels.deltas.layers.setdefault(layer.path, len(kernels.deltas.layers))

    def prepare(self, bank: AdapterBank) -> AdapterBank:
        """The bank itself: it is used as it is."""
        return bank

    def logits(self, hidden: Tensor, adapters: tuple[AdapterRows, ...]) -> Tensor:
        """[num_rows, hidden_size] -> float32 [num_rows, vocab_size]; adapters' rows count within these rows."""
        return self._eager.logits(hidden, adapters)

    def hidden_states(self, batch: ForwardBatch, cache: KVCache) -> Tensor:
        """Hidden states after the final norm [num_tokens, hidden_size]; writes keys and values to the cache."""
        num_rows = len(batch.token_ids)
        if self._has_experts or not 0 < num_rows <= MAX_ROWS:
            return self._eager.hidden_states(batch, cache)
        size = _power_of_two(num_rows)
        tables = self._kernels.attention_tables(batch.segments, self._group, cache.block_size)
        deltas = self._kernels.delta_table(batch.adapters) if batch.adapters else None
        room = None if deltas is None else self._room(size, deltas)
        if len(tables) > 1 or (deltas is not None and (deltas.has_dora or room is None)):
            return self._eager.hidden_states(batch, cache)
        if cache is not self._cache:  # graphs read and write the one that they were captured with
            self._graphs.clear()
            self._cache = cache
        (table,) = tables
        max_blocks = _power_of_two(max(table.blocks.shape[1], SPLIT // cache.block_size))
        key = (size, max_blocks, table.splits > 0, 0 if room is None else room.ranks)
        if key not in self._graphs:
            splits = -(-max_blocks * cache.block_size // SPLIT) if table.splits else 0
            self._graphs[key] = _Graph(self._kernels, self.dtype, size, max_blocks, replace(table, splits=splits), room)
        graph = self._graphs[key]
        graph.fill(batch, table, deltas)
        if graph.captured is None:
            graph.captured = self._capture(lambda: graph.run(self._eager.model, batch.adapters, cache))
        replay, output = graph.captured
        replay()
        return output[:num_rows].clone()

    def _room(self, size: int, deltas: DeltaTable) -> Room | None:
        """The room for adapters in a graph of so many rows; None: there is too little for these."""
        pairs = max(8, 2 * size)
        room = Room(size, pairs, pairs, len(self._kernels.deltas.layers), _power_of_two(deltas.room.ranks))
        return room if room.holds(deltas.room) else None


class _Graph:
    """The tensors that one captured pass reads, and the pass."""

    def __init__(
        self,
        kernels: TritonKernels,
        dtype: torch.dtype,
        size: int,
        max_blocks: int,
        like: AttentionTable,
        room: Room | None,
    ) -> None:
        device = like.tiles.device
        self.captured: tuple[Callable[[], None], Tensor] | None = None
        self._dtype = dtype
        self._rows = torch.zeros((3, size), dtype=torch.int64, device=device)  # token ids, positions, slots
        self._attention = replace(
            like,
            tiles=torch.zeros((size, 4), dtype=torch.int32, device=device),
            blocks=torch.zeros((size + 1, max_blocks), dtype=torch.int32, device=device),
        )
        # Tiles of rows that nobody has: each sees the first position of the cache, so that what comes out is a number.
        self._idle = torch.tensor([(row, 1, 0, size) for row in range(size)], dtype=torch.int32, device=device)
        self._kernels = kernels
        self._room = room
        self._deltas: DeltaTable | None = None  # what is in place
        self._filled: tuple[DeltaTable, DeltaTable] | None = None  # what it was filled from, and kept for its addresses

    def fill(self, batch: ForwardBatch, table: AttentionTable, deltas: DeltaTable | None) -> None:
        """Put a pass in place: where its queries and keys lie is in `table`, what changes its rows in `deltas`."""
        num_rows, num_tiles = len(batch.token_ids), len(table.tiles)
        for own, its, empty in zip(
            self._rows, (batch.token_ids, batch.positions, batch.slots), (0, 0, -1), strict=True
        ):
            own[:num_rows].copy_(its)
            own[num_rows:].fill_(empty)
        idle = self._idle[num_rows:]
        self._attention.tiles.zero_()  # a tile without rows
        self._attention.tiles[:num_tiles].copy_(table.tiles)
        self._attention.tiles[num_tiles : num_tiles + len(idle)].copy_(idle)
        self._attention.blocks[: len(table.blocks), : table.blocks.shape[1]].copy_(table.blocks)
        if deltas is None or (self._filled is not None and self._filled[0] is deltas):
            return
        assert self._room is not None
        whole = self._kernels.deltas.in_room(batch.adapters, self._room)
        if self._deltas is None:
            # Every layer is captured: later adapters may change others than these do.
            self._deltas = replace(whole, changed=[True] * self._room.layers, kept=())
        else:
            self._deltas.copy_(whole)
        self._filled = deltas, whole

    def run(self, model: ModelDefinition, adapters: tuple[AdapterRows, ...], cache: KVCache) -> Tensor:
        """The pass over what is in place: of adapters it reads nothing but that there are some."""
        kernels = _KernelsInPlace(self._kernels, self._attention, self._deltas)
        token_ids, positions, slots = self._rows
        batch = ForwardBatch(token_ids, positions, slots, ())
        return model.hidden_states(EagerForward(kernels, self._dtype, adapters, batch, cache))


class _KernelsInPlace(TritonKernels):
    """The same kernels; where rows lie and what changes them stands in tables that are filled in later."""

    def __init__(self, kernels: TritonKernels, attention: AttentionTable, deltas: DeltaTable | None) -> None:
        super().__init__(kernels.weights, batch_invariant=kernels.batch_invariant)
        self.deltas = kernels.deltas
        self._tables = (attention,)
        self._delta_table = deltas

    def delta_table(self, adapters: tuple[AdapterRows, ...]) -> DeltaTable:
        """The one in place."""
        assert self._delta_table is not None
        return self._delta_table

    def attention_tables(
        self, segments: tuple[AttentionSegment, ...], group: int, block_size: int
    ) -> tuple[AttentionTable, ...]:
        """The one in place."""
        return self._tables


def _power_of_two(number: int) -> int:
    """The next one that is at least as large."""
    return 1 << (number - 1).bit_length()
