"""Every operation in plain torch: the definition that faster kernels are tested against."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from inference_svc.kv_cache.cache import KVCache
from inference_svc.layers.batch import AdapterRows, AttentionSegment, AttentionShape
from inference_svc.weights.quantization import QuantizedTensor

# Rows in one product of the batch-invariant mode. A product of a fixed shape treats each row the same wherever it
# stands and whatever is beside it; one whose shape follows the batch does not: blocking is chosen by shape.
ROW_TILE = 16

_ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
}


class ReferenceKernels:
    """Plain torch, on any device, in the dtype of the activations."""

    def __init__(self, *, batch_invariant: bool) -> None:
        self.name = "reference"
        self.batch_invariant = batch_invariant

    def linear(self, x: Tensor, weight: QuantizedTensor) -> Tensor:
        """Dequantize, then multiply."""
        return self.dense(x, weight.dequantize(x.dtype))

    def dense(self, x: Tensor, matrix: Tensor) -> Tensor:
        """[num_tokens, in_features] times the transpose of [out_features, in_features]."""
        if not self.batch_invariant:
            return F.linear(x, matrix)
        return _by_row_tiles(lambda tile: F.linear(tile, matrix), x)

    def add_deltas(self, y: Tensor, base: Tensor, x: Tensor, path: str, adapters: tuple[AdapterRows, ...]) -> Tensor:
        """Bank by bank; those of a DoRA are its whole layer less the base's."""
        changes = [(adapter, delta) for adapter in adapters if (delta := adapter.bank.deltas.get(path)) is not None]
        # A DoRA changes what the base's weight says: not its bias, and not what another adapter has added to it.
        if base is y and any(delta.base_factor is not None for _, delta in changes):
            base = y.clone()
        for adapter, delta in changes:
            row = adapter.bank.scaling_rows[path] if adapter.scalings.shape[1] > 1 else 0
            low_rank = self.dense(x.index_select(0, adapter.rows), delta.a)
            scaled = low_rank * adapter.scalings[:, row, :].index_select(1, delta.expert_of_rank)
            change = self.dense(scaled, delta.b)
            if delta.base_factor is not None:
                factor = delta.base_factor * adapter.scalings[:, row, :]  # float32, whatever the activations are
                change += (base.index_select(0, adapter.rows) * factor).to(change.dtype)
            y.index_add_(0, adapter.rows, change)
        return y

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """x / sqrt(mean(x^2) + eps) * weight, in float32, rounded once."""
        wide = x.float()
        return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight).to(x.dtype)

    def layer_norm(self, x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
        """(x - mean) / sqrt(variance + eps) * weight + bias, in float32, rounded once."""
        wide = x.float()
        centered = wide - wide.mean(-1, keepdim=True)
        normed = centered * torch.rsqrt(centered.square().mean(-1, keepdim=True) + eps) * weight
        return (normed if bias is None else normed + bias).to(x.dtype)

    def rotary(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """The first half of what is rotated against its second half (the layout of Hugging Face checkpoints)."""
        half = cos.shape[-1]
        first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
        cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
        return torch.cat((first * cos - second * sin, second * cos + first * sin, rest), dim=-1)

    def activate(self, kind: str, x: Tensor) -> Tensor:
        """silu, or gelu exactly or by tanh.

        Vector code and the scalar code for what is left over round exp differently: which elements are left over must
        not depend on the number of rows, so the batch-invariant mode goes row by row.
        """
        if not self.batch_invariant:
            return _ACTIVATIONS[kind](x)
        return torch.stack([_ACTIVATIONS[kind](row) for row in x.unbind()])

    def gated(self, kind: str, gate: Tensor, up: Tensor) -> Tensor:
        """The activation, rounded, times up."""
        return self.activate(kind, gate) * up

    def write(self, cache: KVCache, layer: int, slots: Tensor, keys: Tensor, values: Tensor) -> None:
        """As the cache does it."""
        cache.write(layer, slots, keys, values)

    def attention(
        self, queries: Tensor, cache: KVCache, layer: int, segments: tuple[AttentionSegment, ...], shape: AttentionShape
    ) -> Tensor:
        """Segment by segment, in tiles of queries that are aligned to cache blocks.

        A tile always has block_size queries (missing ones are zeros) and sees keys up to the end of its own block, so
        that the shape of its products is a function of the position alone: however a prompt is cut into chunks, and
        whoever is in the batch, a query's arithmetic is the same.
        """
        output = torch.empty_like(queries)
        for segment in segments:
            end = segment.first_position + segment.num_rows
            keys, values = cache.read(layer, segment.blocks[: -(-end // cache.block_size)])
            position = segment.first_position
            while position < end:
                tile_start = position - position % cache.block_size
                tile_end = tile_start + cache.block_size
                count = min(tile_end, end) - position
                row = segment.first_row + position - segment.first_position
                tile = queries.new_zeros((cache.block_size, *queries.shape[1:]))
                offset = position - tile_start
                tile[offset : offset + count] = queries[row : row + count]
                attended = _attend(tile, keys[:tile_end], values[:tile_end], tile_start, shape)
                output[row : row + count] = attended[offset : offset + count]
                position += count
        return output


def _attend(queries: Tensor, keys: Tensor, values: Tensor, first_position: int, shape: AttentionShape) -> Tensor:
    """Queries [n, num_heads, head_dim] at first_position.. over keys and values [k, num_kv_heads, head_dim]."""
    n, num_heads, head_dim = queries.shape
    num_keys, num_kv_heads = keys.shape[:2]
    group = num_heads // num_kv_heads
    # [num_kv_heads, n * group, head_dim]: the heads of a group share keys and values, so they are rows of one product.
    q = queries.reshape(n, num_kv_heads, group, head_dim).permute(1, 0, 2, 3).reshape(num_kv_heads, n * group, head_dim)
    scores = torch.bmm(q, keys.permute(1, 2, 0)) * shape.scale
    if shape.softcap is not None:
        scores = shape.softcap * torch.tanh(scores / shape.softcap)
    query_positions = torch.arange(first_position, first_position + n, device=queries.device)[:, None]
    key_positions = torch.arange(num_keys, device=queries.device)[None, :]
    hidden = key_positions > query_positions  # [n, k]
    if shape.window is not None:
        hidden |= key_positions <= query_positions - shape.window
    scores = scores.masked_fill(hidden.repeat_interleave(group, dim=0), float("-inf"))
    mixed = torch.bmm(torch.softmax(scores.float(), dim=-1).to(q.dtype), values.permute(1, 0, 2))
    return mixed.reshape(num_kv_heads, n, group, head_dim).permute(1, 0, 2, 3).reshape(n, num_heads, head_dim)


def _by_row_tiles(product: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Apply a product to tiles of ROW_TILE rows, the last one filled up with zeros."""
    num_rows = x.shape[0]
    padded = F.pad(x, (0, 0, 0, -num_rows % ROW_TILE))
    return torch.cat([product(tile) for tile in torch.split(padded, ROW_TILE)])[:num_rows]
