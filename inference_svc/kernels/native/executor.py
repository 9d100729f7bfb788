"""Runs a recorded model: fills in what a pass is told, and writes adapters down as passes read them."""

from __future__ import annotations

import ctypes
import math
import weakref
from collections.abc import Mapping, Set
from ctypes import Structure, byref, c_float, c_int32, c_int64, c_void_p
from dataclasses import replace

import torch
from torch import Tensor

from inference_svc.adapters.bank import AdapterBank, LinearDelta
from inference_svc.kernels.native.compiled import CompiledCode
from inference_svc.kernels.native.recorder import Recorder
from inference_svc.kv_cache.cache import KVCache
from inference_svc.layers.batch import AdapterRows, ForwardBatch
from inference_svc.models.definition import ModelDefinition

BLOCK_SIZE = 16  # of the cache; BLOCK of attention.h


class _Segment(Structure):
    _fields_ = (("first_row", c_int64), ("num_rows", c_int64), ("first_position", c_int64), ("blocks", c_void_p))


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
        ("is_finite", c_int32),
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
        ("has_scaling_pass", c_int32),
        ("is_of_prompts", c_int32),
        ("input", c_void_p),
        ("output", c_void_p),
    )


class NativeExecutor:
    """Runs a model as a recorded program, on the CPU."""

    name = "native"
    dtype = torch.float32

    def __init__(self, model: ModelDefinition, *, num_threads: int, exact: bool, batch_invariant: bool) -> None:
        """Record the model; see `CompiledCode` for the arguments.

        Raises:
            NativeUnavailable: the code cannot be had here, or does not have what the model needs.
        """
        self.compiled = CompiledCode(num_threads, exact=exact, batch_invariant=batch_invariant)
        self.batch_invariant = batch_invariant or exact
        # Products of many rows are quicker in another arithmetic. Where the number of rows may not choose it, prompts
        # have it always, and what is generated never.
        self.separates_prompts = batch_invariant and not exact and self.compiled.has_wide_products
        self.cache_dtype = torch.float32 if exact else torch.float16
        self._linears: dict[str, int] = {}
        self._tables: weakref.WeakKeyDictionary[AdapterBank, _Table] = weakref.WeakKeyDictionary()
        self._body = Recorder(self.compiled, self._linears)
        self._width = self._body.finish(model.hidden_states(self._body))
        self._head = Recorder(self.compiled, self._linears)
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
            has_scaling_pass=batch.has_scaling_pass,
            is_of_prompts=batch.is_of_prompts,
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
                row.deltas = self._table(item.bank).pointer
                row.rows = item.rows.data_ptr()
                row.scalings = scalings.data_ptr()
                row.num_rows, row.num_layers, row.num_experts = scalings.shape
            work.num_banks, work.banks = len(adapters), ctypes.addressof(banks)
        if self.compiled.code.lx_run(program.pointer, self.compiled.pointer, byref(work)):
            raise MemoryError(f"there is no memory left for a pass of {work.num_rows} rows")

    def prepare(self, bank: AdapterBank) -> AdapterBank:
        """The bank in the order and the types that passes read it in; see `Executor`."""
        dtype = torch.float32 if self.compiled.exact else torch.float16
        room = self.compiled.room(sum(d.a.numel() + d.b.numel() for d in bank.deltas.values()), dtype)
        deltas: dict[str, LinearDelta] = {}
        finite: set[str] = set()
        for path, delta in sorted(bank.deltas.items(), key=lambda item: self._linears[item[0]]):
            a, room, factor_of_a, a_is_finite = _placed(delta.a, room)
            b, room, factor_of_b, b_is_finite = _placed(delta.b.t(), room)
            if a_is_finite and b_is_finite:
                finite.add(path)
            base_factor = None if delta.base_factor is None else delta.base_factor.float().contiguous()
            deltas[path] = LinearDelta(a, b.t(), delta.expert_of_rank, base_factor, factor_of_a * factor_of_b)
        prepared = replace(bank, deltas=deltas)
        self._tables[prepared] = _Table(deltas, bank.scaling_rows, self._linears, finite)
        return prepared

    def _table(self, bank: AdapterBank) -> _Table:
        if bank not in self._tables:
            self._tables[bank] = self._tables[self.prepare(bank)]
        return self._tables[bank]


class _Table:
    """A bank's deltas by number of the linear layer, as the compiled code reads them."""

    def __init__(
        self,
        deltas: Mapping[str, LinearDelta],
        scaling_rows: Mapping[str, int],
        linears: Mapping[str, int],
        finite: Set[str],
    ) -> None:
        self._kept = deltas  # whose memory the entries point into
        self._entries = (_Delta * len(linears))()
        for path, delta in deltas.items():
            self._entries[linears[path]] = _Delta(
                delta.a.data_ptr(),
                delta.b.data_ptr(),
                delta.expert_of_rank.data_ptr(),
                None if delta.base_factor is None else delta.base_factor.data_ptr(),
                delta.a.shape[0],
                scaling_rows.get(path, 0),
                1.0 / delta.factor,
                delta.a.dtype == torch.float16,
                path in finite,
            )

    @property
    def pointer(self) -> c_void_p:
        """Where they begin."""
        return c_void_p(ctypes.addressof(self._entries))


def _placed(matrix: Tensor, room: Tensor) -> tuple[Tensor, Tensor, float, bool]:
    """A matrix at the beginning of some room, what is left of the room, and the power of two it was multiplied by.

    Last comes whether all numbers are finite; only halves are looked at.
    Halves keep 11 bits of a number, three more than bfloat16; the largest is brought near 2^8, so that numbers down to
    2^-22 of it keep them all. What passes read of adapters is so halved: most of what many of them in a batch cost.
    """
    wide = matrix.float()
    factor, is_finite = 1.0, False
    if room.dtype == torch.float16 and wide.numel():
        lowest, highest = (wide if wide.is_contiguous() else wide.t()).aminmax()  # several times faster so
        largest = max(-float(lowest), float(highest))
        is_finite = largest < float("inf")
        if is_finite and largest > 0.0:
            factor = 2.0 ** (8 - math.frexp(largest)[1])
    placed = room[: matrix.numel()].view(matrix.shape)
    torch.mul(wide, factor, out=placed)
    return placed, room[matrix.numel() :], factor, is_finite
