"""The operations of a pass by Triton kernels; what they do not have, the reference does."""

from __future__ import annotations

import torch
from torch import Tensor

from inference_svc.kernels.reference import ReferenceKernels
from inference_svc.kernels.triton import elementwise
from inference_svc.kernels.triton.attention import attend
from inference_svc.kernels.triton.attention_table import AttentionTable, tables_of
from inference_svc.kernels.triton.delta_table import DeltaTable, DeltaTables
from inference_svc.kernels.triton.deltas import add_deltas
from inference_svc.kernels.triton.packing import PackedWeight
from inference_svc.kernels.triton.products import quantized_linear
from inference_svc.kernels.triton.weights import PackedWeights
from inference_svc.kv_cache.cache import KVCache
from inference_svc.layers.batch import AdapterRows, AttentionSegment, AttentionShape
from inference_svc.weights.quantization import QuantizedTensor


class TritonKernels(ReferenceKernels):
    """On CUDA; or on the CPU, slowly, in Triton's interpreter.

    In batch-invariant mode every kernel has one tile size and adds what makes a row in an order that depends on the
    row's own position, weights and adapters; products of dense matrices are those of the reference.
    """

    def __init__(self, weights: PackedWeights, *, batch_invariant: bool) -> None:
        super().__init__(batch_invariant=batch_invariant)
        self.name = "triton"
        self.weights = weights
        self.deltas = DeltaTables()
        # Of the last pass: each of its layers asks for the same.
        self._attention: tuple[tuple[AttentionSegment, ...], int, tuple[AttentionTable, ...]] = ((), 0, ())

    def linear(self, x: Tensor, weight: QuantizedTensor) -> Tensor:
        """By codes; a weight without codes is a dense matrix."""
        packed = self.weights.of(weight)
        if isinstance(packed, PackedWeight):
            return quantized_linear(x, packed, batch_invariant=self.batch_invariant)
        return self.dense(x, packed)

    def add_deltas(self, y: Tensor, base: Tensor, x: Tensor, path: str, adapters: tuple[AdapterRows, ...]) -> Tensor:
        """Those of DoRA bank by bank, as the reference; then all others at once."""
        doras = tuple(
            adapter
            for adapter in adapters
            if (delta := adapter.bank.deltas.get(path)) is not None and delta.base_factor is not None
        )
        if doras:
            y = super().add_deltas(y, base, x, path, doras)
        table = self.delta_table(adapters)
        layer = self.deltas.layers.get(path)
        if layer is not None and layer < table.room.layers and table.changed[layer]:
            add_deltas(y, x if x.stride(1) == 1 else x.contiguous(), table, layer)
        return y

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """x / sqrt(mean(x^2) + eps) * weight, in float32, rounded once."""
        return elementwise.rms_norm(x, weight, eps)

    def rotary(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """In float32, rounded once."""
        return elementwise.rotary(x, cos, sin)

    def gated(self, kind: str, gate: Tensor, up: Tensor) -> Tensor:
        """In float32, rounded once."""
        return elementwise.gated(kind, gate, up)

    def write(self, cache: KVCache, layer: int, slots: Tensor, keys: Tensor, values: Tensor) -> None:
        """Both in one launch."""
        cached_keys, cached_values = cache.storage
        elementwise.write_cache(cached_keys[layer], cached_values[layer], slots, keys, values)

    def attention(
        self, queries: Tensor, cache: KVCache, layer: int, segments: tuple[AttentionSegment, ...], shape: AttentionShape
    ) -> Tensor:
        """Prompts in one launch, sequences that decode in another, and one that joins the pieces of their contexts."""
        output = torch.empty(queries.shape, dtype=queries.dtype, device=queries.device)
        if queries.stride()[1:] != (shape.head_dim, 1):
            queries = queries.contiguous()
        keys, values = (whole[layer] for whole in cache.storage)
        for table in self.attention_tables(segments, shape.num_heads // shape.num_kv_heads, cache.block_size):
            attend(output, queries, keys, values, cache.block_size, table, shape)
        return output

    def delta_table(self, adapters: tuple[AdapterRows, ...]) -> DeltaTable:
        """What the adapters of a pass change, on its device."""
        return self.deltas.of(adapters)

    def attention_tables(
        self, segments: tuple[AttentionSegment, ...], group: int, block_size: int
    ) -> tuple[AttentionTable, ...]:
        """Where queries and keys of a pass lie, on its device."""
        known, of_group, tables = self._attention
        if known is not segments or of_group != group:
            tables = tables_of(segments, group, block_size, batch_invariant=self.batch_invariant)
            self._attention = segments, group, tables
        return tables
