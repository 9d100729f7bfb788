"""Products over packed weights and attention in compiled code, for the CPU in float32."""

from __future__ import annotations

import ctypes

import torch
from gguf import GGMLQuantizationType
from torch import Tensor

from inference_svc.kernels.native_library import NativeUnavailable, load_library
from inference_svc.kernels.reference import ReferenceKernels
from inference_svc.kv_cache.cache import KVCache
from inference_svc.layers.batch import AttentionSegment, AttentionShape
from inference_svc.weights.quantization import QuantizedTensor

PACKED_TYPES = frozenset(
    GGMLQuantizationType[name] for name in ("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")
)

__all__ = ["NativeKernels", "NativeUnavailable"]


class NativeKernels(ReferenceKernels):
    """The reference, with its two expensive operations compiled.

    The compiled ones are batch-invariant by themselves; the small ones that are inherited treat rows one by one.
    """

    def __init__(self, *, batch_invariant: bool) -> None:
        """Build or load the library.

        Raises:
            NativeUnavailable: it cannot be had on this machine.
        """
        super().__init__(batch_invariant=batch_invariant)
        self.name = "native"
        self._library = load_library()

    def linear(self, x: Tensor, weight: QuantizedTensor) -> Tensor:
        """Unpack four rows of the weight at a time and multiply; other types go through the reference."""
        if weight.quantization not in PACKED_TYPES:
            return self.dense(x, weight.dequantize(x.dtype))
        return self._linear(x, weight.data, int(weight.quantization), weight.shape[0])

    def dense(self, x: Tensor, matrix: Tensor) -> Tensor:
        """As linear, over a float32 matrix."""
        return self._linear(x, matrix.contiguous(), int(GGMLQuantizationType.F32), matrix.shape[0])

    def _linear(self, x: Tensor, weight: Tensor, quantization: int, out_features: int) -> Tensor:
        x = x.contiguous()
        y = torch.empty((x.shape[0], out_features), dtype=torch.float32)
        row_bytes = weight.numel() * weight.element_size() // out_features
        self._library.loramux_linear(
            _pointer(x),
            ctypes.c_int64(x.shape[0]),
            ctypes.c_int64(x.shape[1]),
            _pointer(weight),
            ctypes.c_int32(quantization),
            ctypes.c_int64(row_bytes),
            ctypes.c_int64(out_features),
            _pointer(y),
        )
        return y

    def attention(
        self, queries: Tensor, cache: KVCache, layer: int, segments: tuple[AttentionSegment, ...], shape: AttentionShape
    ) -> Tensor:
        """Query by query over the blocks in place, without copying them."""
        num_heads, head_dim = queries.shape[1:]
        if head_dim % 16 or shape.window is not None or shape.softcap is not None:
            return super().attention(queries, cache, layer, segments, shape)
        queries = queries.contiguous()
        output = torch.empty_like(queries)
        keys, values = cache.layer(layer)
        for segment in segments:
            rows = slice(segment.first_row, segment.first_row + segment.num_rows)
            self._library.loramux_attention(
                _pointer(queries[rows]),
                ctypes.c_int64(segment.num_rows),
                ctypes.c_int64(segment.first_position),
                ctypes.c_int64(num_heads),
                ctypes.c_int64(keys.shape[2]),
                ctypes.c_int64(head_dim),
                _pointer(keys),
                _pointer(values),
                _pointer(segment.blocks),
                ctypes.c_int64(cache.block_size),
                ctypes.c_float(shape.scale),
                _pointer(output[rows]),
            )
        return output


def _pointer(tensor: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())
