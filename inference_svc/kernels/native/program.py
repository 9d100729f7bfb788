"""A model's definition, recorded as a program of the compiled library, and the executor that runs it."""

from __future__ import annotations

import ctypes
import math
import weakref
from collections.abc import Iterator, Sequence
from ctypes import Structure, byref, c_float, c_int32, c_int64, c_void_p

import torch
from torch import Tensor

from inference_svc.adapters.bank import AdapterBank
from inference_svc.kernels.native.library import NativeUnavailable, load_library
from inference_svc.kv_cache.cache import KVCache
from inference_svc.layers.batch import AdapterRows, AttentionShape, ForwardBatch
from inference_svc.layers.linear import GatedExpert, Linear
from inference_svc.layers.rotary import RotaryTable
from inference_svc.models.definition import ModelDefinition
from inference_svc.weights.quantization import QuantizedTensor

LANES = 16  # floats that are computed side by side: what is summed over comes in multiples
BLOCK_SIZE = 16  # of the cache; the library's BLOCK
# Numbers of operations and types in program.cpp and quantized.h.
_RMS_NORM, _LAYER_NORM, _ADD, _SOFTCAP = 2, 3, 9, 10
_ACTIVATIONS = {"silu": 6, "gelu": 7, "gelu_tanh": 8}
_FLOATS = frozenset({"F32", "F16", "BF16"})
_CODED = frozenset({"Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"})


class _Segment(Structure):
    _fields_ = (("first_row", c_int64), ("num_rows", c_int64), ("first_position", c_int64), ("blocks", c_void_p))


class _Shape(Structure):
    _fields_ = (
        ("num_heads", c_int64),
        ("num_kv_heads", c_int64),
        ("head_dim", c_int64),
        ("scale", c_float),
        ("window", c_int64),
        ("softcap", c_float),
    )


class _Delta(Structure):
    _fields_ = (
        ("a", c_void_p),
        ("b", c_void_p),
        ("expert_of_rank", c_void_p),
        ("base_factor", c_void_p),
        ("rank", c_int64),
        ("scaling_row", c_int64),
        ("factor", c_float),
        ("halves", c_int32),
    )


class _BankRows(Structure):
    _fields_ = (
        ("deltas", c_void_p),
        ("rows", c_void_p),
        ("scalings", c_void_p),
        ("num_rows", c_int64),
        ("num_layers", c_int64),
        ("num_experts", c_int64),
    )


class _Pass(Structure):
    _fields_ = (
        ("num_rows", c_int64),
        ("token_ids", c_void_p),
        ("positions", c_void_p),
        ("slots", c_void_p),
        ("num_segments", c_int64),
        ("segments", c_void_p),
        ("num_banks", c_int64),
        ("banks", c_void_p),
        ("keys", c_void_p),
        ("values", c_void_p),
        ("layer_size", c_int64),
        ("half_cache", c_int32),
        ("input", c_void_p),
        ("output", c_void_p),
    )


class Library:
    """The compiled library with its threads, and the matrices packed for it."""

    def __init__(self, num_threads: int, *, exact: bool, batch_invariant: bool) -> None:
        """Build or load it.

        Args:
            num_threads: that run a pass.
            exact: products in float32 over unpacked weights, instead of over rounded activations.
            batch_invariant: no row's arithmetic may depend on how many rows there are.

        Raises:
            NativeUnavailable: it cannot be had on this machine.
        """
        self.code = load_library()
        self.exact = exact
        for name in ("lx_library", "lx_pack", "lx_program", "lx_allocate"):
            getattr(self.code, name).restype = c_void_p
        self.pointer = c_void_p(self.code.lx_library(c_int32(num_threads), c_int32(batch_invariant)))
        # By identity of the weight, which is kept with it: a tied embedding is packed once.
        self._packed: dict[int, tuple[QuantizedTensor, c_void_p | None]] = {}
        self.table: QuantizedTensor | None = None  # of the embedding, read as it is in the file
        self.unpacked: list[str] = []  # paths whose scales do not fit the packed layout
        weakref.finalize(self, self.code.lx_library_free, self.pointer)

    def packed(self, path: str, weight: QuantizedTensor) -> c_void_p | None:
        """The weight in the library's layout; None: its products are computed in float32."""
        if self.exact or weight.quantization.name not in _CODED:
            return None
        if id(weight) not in self._packed:
            rows, columns = weight.shape
            data = weight.data.contiguous()
            pointer = self.code.lx_pack(
                self.pointer, c_int32(weight.quantization), _pointer(data), c_int64(rows), c_int64(columns)
            )
            if pointer is None:
                self.unpacked.append(path)
            self._packed[id(weight)] = (weight, None if pointer is None else c_void_p(pointer))
            if pointer is not None and weight is not self.table:
                weight.release()  # at once: two copies of a whole model would not fit where one does
        return self._packed[id(weight)][1]

    def room(self, count: int, dtype: torch.dtype) -> Tensor:
        """An empty vector of so many numbers in large pages; lives as long as any view of it."""
        size = count * dtype.itemsize
        address = self.code.lx_allocate(c_int64(size))
        memory = (ctypes.c_char * size).from_address(address)
        # A view keeps the buffer, and the buffer's end gives the memory back.
        weakref.finalize(memory, self.code.lx_release, c_void_p(address))
        return torch.frombuffer(memory, dtype=dtype) if count else torch.empty(0, dtype=dtype)


class Recorder:
    """Writes a program down; values are its numbers. See `Forward` for what each operation means."""

    def __init__(self, library: Library, linears: dict[str, int]) -> None:
        """`linears` numbers the linear layers by path; what is not in it yet is added."""
        self._library = library
        self._code = library.code
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
        self._library.table = table
        data, row_bytes = self._matrix("the embedding", table)
        width = table.shape[1]
        value = self._code.lx_embed(
            self.pointer, c_int32(table.quantization), data, c_int64(row_bytes), c_int64(width), c_float(scale)
        )
        return self._new(value, width)

    def linear(self, x: int, layer: Linear) -> int:
        packed = self._library.packed(layer.path, layer.weight)
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
        if kind not in _FLOATS | _CODED:
            raise NativeUnavailable(f"{name} is of the type {kind}")
        if matrix.shape[1] % LANES:
            raise NativeUnavailable(f"{name} has {matrix.shape[1]} columns, not a multiple of {LANES}")
        data = matrix.data.contiguous()
        self._kept.append(data)
        return _pointer(data), data.shape[1]

    def _floats(self, tensor: Tensor | None) -> c_void_p | None:
        if tensor is None:
            return None
        data = tensor.float().contiguous()
        self._kept.append(data)
        return _pointer(data)


class NativeExecutor:
    """Runs a model as a recorded program, on the CPU."""

    name = "native"
    dtype = torch.float32

    def __init__(self, model: ModelDefinition, *, num_threads: int, exact: bool, batch_invariant: bool) -> None:
        """Record the model; see `Library` for the arguments.

        Raises:
            NativeUnavailable: the library cannot be had here, or does not have what the model needs.
        """
        self.library = Library(num_threads, exact=exact, batch_invariant=batch_invariant)
        self.batch_invariant = batch_invariant or exact
        self.cache_dtype = torch.float32 if exact else torch.float16
        self._linears: dict[str, int] = {}
        self._banks: weakref.WeakKeyDictionary[AdapterBank, tuple[object, c_void_p]] = weakref.WeakKeyDictionary()
        self._body = Recorder(self.library, self._linears)
        self._width = self._body.finish(model.hidden_states(self._body))
        self._head = Recorder(self.library, self._linears)
        self._vocab_size = self._head.finish(model.logits(self._head, self._head.input(self._width)))

    def hidden_states(self, batch: ForwardBatch, cache: KVCache) -> Tensor:
        """Hidden states after the final norm [num_tokens, hidden_size]; writes keys and values to the cache."""
        assert cache.block_size == BLOCK_SIZE
        output = torch.empty((len(batch.token_ids), self._width))
        keys, values = cache.storage
        segments = (_Segment * len(batch.segments))()
        for row, segment in zip(segments, batch.segments, strict=True):
            row.first_row, row.num_rows = segment.first_row, segment.num_rows
            row.first_position, row.blocks = segment.first_position, segment.blocks.data_ptr()
        work = _Pass(
            num_rows=len(batch.token_ids),
            token_ids=batch.token_ids.data_ptr(),
            positions=batch.positions.data_ptr(),
            slots=batch.slots.data_ptr(),
            num_segments=len(batch.segments),
            segments=ctypes.addressof(segments),
            keys=keys.data_ptr(),
            values=values.data_ptr(),
            layer_size=keys[0].numel(),
            half_cache=keys.dtype == torch.float16,
            output=output.data_ptr(),
        )
        self._run(self._body, work, batch.adapters)
        return output

    def logits(self, hidden: Tensor, adapters: tuple[AdapterRows, ...]) -> Tensor:
        """[num_rows, hidden_size] -> float32 [num_rows, vocab_size]; adapters' rows count within these rows."""
        hidden = hidden.contiguous()
        output = torch.empty((len(hidden), self._vocab_size))
        work = _Pass(num_rows=len(hidden), input=hidden.data_ptr(), output=output.data_ptr())
        self._run(self._head, work, adapters)
        return output

    def _run(self, program: Recorder, work: _Pass, adapters: tuple[AdapterRows, ...]) -> None:
        if not work.num_rows:
            return
        kept: list[object] = []  # what the pass reads must outlive it
        if adapters:
            banks = (_BankRows * len(adapters))()
            for row, item in zip(banks, adapters, strict=True):
                scalings = item.scalings.contiguous()
                kept.append(scalings)
                row.deltas = self._deltas(item.bank)
                row.rows = item.rows.data_ptr()
                row.scalings = scalings.data_ptr()
                row.num_rows, row.num_layers, row.num_experts = scalings.shape
            work.num_banks, work.banks = len(adapters), ctypes.addressof(banks)
        if self.library.code.lx_run(program.pointer, self.library.pointer, byref(work)):
            raise MemoryError(f"there is no memory left for a pass of {work.num_rows} rows")

    def prepare(self, bank: AdapterBank) -> None:
        """Write a bank's deltas down in the order that passes read them in; any thread, before the bank is used."""
        self._deltas(bank)

    def _deltas(self, bank: AdapterBank) -> c_void_p:
        """The bank's deltas by number of the linear layer; written down once."""
        if bank not in self._banks:
            table = (_Delta * len(self._linears))()
            kept: list[object] = [table]
            dtype = torch.float32 if self.library.exact else torch.float16
            room = self.library.room(sum(d.a.numel() + d.b.numel() for d in bank.deltas.values()), dtype)
            # In the order in which a pass reads them.
            for path, delta in sorted(bank.deltas.items(), key=lambda item: self._linears[item[0]]):
                a, room, factor_of_a = _placed(delta.a, room)
                b, room, factor_of_b = _placed(delta.b.t(), room)
                base_factor = None if delta.base_factor is None else delta.base_factor.float().contiguous()
                kept += [a, b, base_factor, delta]
                table[self._linears[path]] = _Delta(
                    a.data_ptr(),
                    b.data_ptr(),
                    delta.expert_of_rank.data_ptr(),
                    None if base_factor is None else base_factor.data_ptr(),
                    a.shape[0],
                    bank.scaling_rows.get(path, 0),
                    1.0 / (factor_of_a * factor_of_b),
                    dtype == torch.float16,
                )
            self._banks[bank] = (kept, c_void_p(ctypes.addressof(table)))
        return self._banks[bank][1]


def _placed(matrix: Tensor, room: Tensor) -> tuple[Tensor, Tensor, float]:
    """A matrix at the beginning of some room, what is left of the room, and the power of two it was multiplied by.

    Halves keep 11 bits of a number, three more than bfloat16; the largest is brought near 2^8, so that numbers down to
    2^-22 of it keep them all. What passes read of adapters is so halved: most of what many of them in a batch cost.
    """
    wide = matrix.float()
    largest = float(wide.abs().max()) if wide.numel() else 0.0
    factor = 1.0
    if room.dtype == torch.float16 and 0.0 < largest < float("inf"):
        factor = 2.0 ** (8 - math.frexp(largest)[1])
    placed = room[: matrix.numel()].view(matrix.shape)
    placed.copy_(wide * factor if factor != 1.0 else wide)
    return placed, room[matrix.numel() :], factor


def _pointer(tensor: Tensor) -> c_void_p:
    return c_void_p(tensor.data_ptr())
