"""The compiled code with its threads, and the matrices packed for it."""

from __future__ import annotations

import ctypes
import weakref
from ctypes import c_int32, c_int64, c_void_p

import torch
from torch import Tensor

from inference_svc.kernels.native.compiler import load_code
from inference_svc.kernels.native.sizes import CODINGS
from inference_svc.weights.quantization import QuantizedTensor

# Types that products read as they are, and those that are packed: numbers of quantized.h.
FLOATS = frozenset({"F32", "F16", "BF16"})
CODED = frozenset(CODINGS)


class CompiledCode:
    """The compiled code with its threads, and the matrices packed for it."""

    def __init__(self, num_threads: int, *, exact: bool, batch_invariant: bool) -> None:
        """Build or load it.

        Args:
            num_threads: that run a pass.
            exact: products in float32 over unpacked weights, instead of over rounded activations.
            batch_invariant: no row's arithmetic may depend on how many rows there are.

        Raises:
            NativeUnavailable: it cannot be had on this machine.
        """
        self.code = load_code()
        self.exact = exact
        for name in ("lx_library", "lx_pack", "lx_program", "lx_allocate"):
            getattr(self.code, name).restype = c_void_p
        self.pointer = c_void_p(self.code.lx_library(c_int32(num_threads), c_int32(batch_invariant)))
        # By identity of the weight, which is kept with it: a tied embedding is packed once.
        self._packed: dict[int, tuple[QuantizedTensor, c_void_p | None]] = {}
        self.table: QuantizedTensor | None = None  # of the embedding, read as it is in the file
        self.unpacked: list[str] = []  # paths whose scales do not fit the packed layout
        weakref.finalize(self, self.code.lx_library_free, self.pointer)

    @property
    def has_wide_products(self) -> bool:
        """This processor multiplies passes of many rows in bfloat16."""
        return bool(self.code.lx_has_wide_products())

    def packed(self, path: str, weight: QuantizedTensor) -> c_void_p | None:
        """The weight in the native layout; None: its products are computed in float32."""
        if self.exact or weight.quantization.name not in CODED:
            return None
        if id(weight) not in self._packed:
            rows, columns = weight.shape
            data = weight.data.contiguous()
            pointer = self.code.lx_pack(
                self.pointer, c_int32(weight.quantization), address_of(data), c_int64(rows), c_int64(columns)
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


def address_of(tensor: Tensor) -> c_void_p:
    """Address of a tensor's numbers."""
    return c_void_p(tensor.data_ptr())
