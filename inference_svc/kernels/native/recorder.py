"""Writes a model's definition down as a program of the compiled code."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from ctypes import Structure, byref, c_float, c_int32, c_int64, c_void_p

from torch import Tensor

from inference_svc.kernels.native.compiled import CODED, FLOATS, CompiledCode, address_of
from inference_svc.kernels.native.compiler import NativeUnavailable
from inference_svc.layers.batch import AttentionShape
from inference_svc.layers.linear import GatedExpert, Linear
from inference_svc.layers.rotary import RotaryTable
from inference_svc.weights.quantization import QuantizedTensor

LANES = 16  # floats that are computed side by side: what is summed over comes in multiples
# Numbers of operations in program.cpp.
_RMS_NORM, _LAYER_NORM, _ADD, _SOFTCAP = 2, 3, 9, 10
_ACTIVATIONS = {"silu": 6, "gelu": 7, "gelu_tanh": 8}


class _Shape(Structure):
    _fields_ = (
        ("num_heads", c_int64),
        ("num_kv_heads", c_int64),
        ("head_dim", c_int64),
        ("scale", c_float),
        ("window", c_int64),
        ("softcap", c_float),
    )


class Recorder:
    """Writes a program down; values are its numbers. See `Forward` for what each operation means."""

    def __init__(self, compiled: CompiledCode, linears: dict[str, int]) -> None:
        """`linears` numbers the linear layers by path; what is not in it yet is added."""
        self._compiled = compiled
        self._code = compiled.code
        self._linears = linears
        self._widths: dict[int, int] = {}
        self._kept: list[object] = []  # tensors whose memory the program reads
        self.pointer = c_void_p(self._code.lx_program())
        weakref.finalize(self, self._code.lx_program_free, self.pointer)

    def input(self, width: int) -> int:
        """A value that each pass is given."""
        return self._new(self._code.lx_input(self.pointer, c_int64(width)), width)

    def finish(self, result: int) -> int:
        """End the program; returns the width of its result."""
        self._code.lx_finish(self.pointer, c_int32(result))
        return self._widths[result]

    def embed(self, table: QuantizedTensor, scale: float = 1.0) -> int:
        self._compiled.table = table
        data, row_bytes = self._matrix("the embedding", table)
        width = table.shape[1]
        value = self._code.lx_embed(
            self.pointer, c_int32(table.quantization), data, c_int64(row_bytes), c_int64(width), c_float(scale)
        )
        return self._new(value, width)

    def linear(self, x: int, layer: Linear) -> int:
        packed = self._compiled.packed(layer.path, layer.weight)
        data, row_bytes = (None, 0) if packed is not None else self._matrix(layer.path, layer.weight)
        index = self._linears.setdefault(layer.path, len(self._linears))
        out_features = layer.weight.shape[0]
        value = self._code.lx_linear(
            self.pointer,
            c_int32(x),
            c_int64(index),
            c_int32(layer.weight.quantization),
            data,
            c_int64(row_bytes),
            c_int64(out_features),
            packed,
            self._floats(layer.bias),
        )
        return self._new(value, out_features)

    def rms_norm(self, x: int, weight: Tensor, eps: float) -> int:
        return self._norm(_RMS_NORM, x, weight, None, eps)

    def layer_norm(self, x: int, weight: Tensor, bias: Tensor | None, eps: float) -> int:
        return self._norm(_LAYER_NORM, x, weight, bias, eps)

    def split(self, x: int, sizes: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(self._split(x, sizes))

    def rotary(self, x: int, table: RotaryTable, head_dim: int) -> int:
        cosines, sines = table.cosines, table.sines
        value = self._code.lx_rotary(
            self.pointer,
            c_int32(x),
            self._floats(cosines),
            self._floats(sines),
            c_int64(cosines.shape[1]),
            c_int64(head_dim),
        )
        return self._new(value, self._widths[x])

    def attention(self, q: int, k: int, v: int, layer: int, shape: AttentionShape) -> int:
        if shape.head_dim % LANES:
            raise NativeUnavailable(f"the head dimension {shape.head_dim} is not a multiple of {LANES}")
        if shape.num_heads // shape.num_kv_heads > 4 * LANES:
            raise NativeUnavailable(f"{shape.num_heads} heads share {shape.num_kv_heads} keys")
        numbers = _Shape(
            shape.num_heads, shape.num_kv_heads, shape.head_dim, shape.scale, shape.window or 0, shape.softcap or 0.0
        )
        value = self._code.lx_attention(
            self.pointer, c_int32(q), c_int32(k), c_int32(v), c_int64(layer), byref(numbers)
        )
        return self._new(value, self._widths[q])

    def experts(self, x: int, scores: int, experts: tuple[GatedExpert, ...], per_token: int, kind: str) -> int:
        raise NativeUnavailable(f"they run no mixtures of experts, such as {experts[0].gate.path}")

    def activate(self, kind: str, x: int) -> int:
        return self._elementwise(_ACTIVATIONS[kind], x, -1, 0.0)

    def gated(self, kind: str, gate: int, up: int) -> int:
        return self._elementwise(_ACTIVATIONS[kind], gate, up, 0.0)

    def add(self, x: int, y: int) -> int:
        return self._elementwise(_ADD, x, y, 0.0)

    def softcap(self, x: int, limit: float) -> int:
        return self._elementwise(_SOFTCAP, x, -1, limit)

    def _norm(self, kind: int, x: int, weight: Tensor, bias: Tensor | None, eps: float) -> int:
        if self._widths[x] % LANES:
            raise NativeUnavailable(f"the width {self._widths[x]} is not a multiple of {LANES}")
        value = self._code.lx_norm(
            self.pointer, c_int32(x), c_int32(kind), self._floats(weight), self._floats(bias), c_float(eps)
        )
        return self._new(value, self._widths[x])

    def _split(self, x: int, sizes: Sequence[int]) -> Iterator[int]:
        first = 0
        for size in sizes:
            yield self._new(self._code.lx_split(self.pointer, c_int32(x), c_int64(first), c_int64(size)), size)
            first += size

    def _elementwise(self, kind: int, x: int, y: int, number: float) -> int:
        value = self._code.lx_elementwise(self.pointer, c_int32(kind), c_int32(x), c_int32(y), c_float(number))
        return self._new(value, self._widths[x])

    def _new(self, value: int, width: int) -> int:
        self._widths[value] = width
        return value

    def _matrix(self, name: str, matrix: QuantizedTensor) -> tuple[c_void_p, int]:
        """Address and bytes of a row."""
        kind = matrix.quantization.name
        if kind not in FLOATS | CODED:
            raise NativeUnavailable(f"{name} is of the type {kind}")
        if matrix.shape[1] % LANES:
            raise NativeUnavailable(f"{name} has {matrix.shape[1]} columns, not a multiple of {LANES}")
        data = matrix.data.contiguous()
        self._kept.append(data)
        return address_of(data), data.shape[1]

    def _floats(self, tensor: Tensor | None) -> c_void_p | None:
        if tensor is None:
            return None
        data = tensor.float().contiguous()
        self._kept.append(data)
        return address_of(data)
