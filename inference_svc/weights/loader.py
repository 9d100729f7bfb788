"""The tensors of a model as they will be in memory: what stays as in the file, and what is packed anew on the way.

Tensors are read one by one, and those that are packed anew a few rows at a time, so that loading takes little more
memory than what is loaded.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from inference_svc.weights.errors import MalformedFile, UnsupportedFile
from inference_svc.weights.in_situ import FLOAT_TYPES, Scheme, chosen_types, pack
from inference_svc.weights.opening import ModelSource
from inference_svc.weights.quantization import (
    QuantizedTensor,
    from_floats,
    is_supported,
    largest_value,
    type_in_memory,
)
from inference_svc.weights.source import SourceFormat
from inference_svc.weights.stored_tensor import StoredTensor

PIECE = 1 << 17  # values that a thread packs anew at once: what it works on stays in its core's cache

# Told how many bytes of the files are done, and of how many.
Observer = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class LoadedEntry:
    """A tensor as it will be in memory."""

    name: str
    shape: tuple[int, ...]
    quantization: GGMLQuantizationType

    @property
    def nbytes(self) -> int:
        """Bytes of the packed data."""
        block, block_bytes = GGML_QUANT_SIZES[self.quantization]
        return int(math.prod(self.shape) // block * block_bytes)


class WeightLoader:
    """A TensorSource over the files of a model that packs anew what is to be packed anew.

    Types that no kernel reads packed (IQ1_S to IQ3_S, TQ1_0 and the like) are unpacked once, see `type_in_memory`.
    """

    def __init__(
        self,
        files: ModelSource,
        *,
        quantize: Scheme | None = None,
        exact: bool = True,
        device: torch.device | None = None,
        on_progress: Observer | None = None,
    ) -> None:
        """Decide on the types; nothing is read.

        Args:
            files: opened and checked.
            quantize: what float matrices are packed into.
            exact: what is unpacked keeps every value, however much memory that takes.
            device: where the tensors go; None: the CPU.
            on_progress: called after each piece that was read.

        Raises:
            UnsupportedFile: a tensor's type cannot be unpacked, or `quantize` is given for weights that are packed.
        """
        self._files = files
        self._device = device or torch.device("cpu")
        self._on_progress = on_progress
        self._done = 0
        self._total = sum(entry.nbytes for entry in files.entries.values())
        _refuse_unknown_types(files)
        own = {name: entry.quantization for name, entry in files.entries.items()}
        if quantize is not None:
            _refuse_packed(files, quantize)
            own = chosen_types(files, quantize)
        types = {name: type_in_memory(kind, exact=exact) for name, kind in own.items()}
        self._entries = {name: LoadedEntry(name, entry.shape, types[name]) for name, entry in files.entries.items()}

    @property
    def path(self) -> Path:
        """What messages name: the file, the first of a split one, or the folder."""
        return self._files.path

    @property
    def format(self) -> SourceFormat:
        """Whose names these are."""
        return self._files.format

    @property
    def metadata(self) -> Mapping[str, object]:
        """GGUF metadata, or the object in config.json."""
        return self._files.metadata

    @property
    def entries(self) -> Mapping[str, LoadedEntry]:
        """All tensors by name."""
        return self._entries

    @property
    def notice(self) -> str:
        """What was packed anew, for the start-up log; may be empty."""
        changes = Counter(
            (stored.quantization.name, self._entries[name].quantization.name)
            for name, stored in self._files.entries.items()
            if stored.quantization is not self._entries[name].quantization
        )
        if not changes:
            return ""
        counted = ", ".join(f"{count} of {old} as {new}" for (old, new), count in sorted(changes.items()))
        loaded = sum(entry.nbytes for entry in self._entries.values())
        return f"tensors packed anew: {counted}; {self._total / 1e6:.1f} MB of files take {loaded / 1e6:.1f} MB"

    def tensor(self, name: str) -> QuantizedTensor:
        """Read one tensor, in its type in memory, as a matrix: all axes before the last one are its rows.

        Raises:
            FileMissing, FileChanged: its file cannot be read, or is not what it was when it was opened.
            MalformedFile: it is to be packed, and holds numbers that no packed type can hold.
        """
        stored, entry = self._files.entries[name], self._entries[name]
        if stored.quantization is entry.quantization:
            tensor = stored.read()
            self._advance(stored.nbytes)
        else:
            tensor = self._packed_anew(stored, entry.quantization)
        return tensor.to(self._device)

    def _packed_anew(self, stored: StoredTensor, quantization: GGMLQuantizationType) -> QuantizedTensor:
        unread = stored.unread()
        block, block_bytes = GGML_QUANT_SIZES[quantization]
        rows, columns = unread.shape
        data = torch.empty((rows, columns // block * block_bytes), dtype=torch.uint8)
        step = max(1, PIECE // columns)
        limit = largest_value(quantization)

        def pack_rows(first: int) -> int:
            piece = unread.part(first, step)
            values = piece.dequantize()
            largest = float(values.abs().max())
            if not largest <= limit:  # nor if it is NaN
                raise MalformedFile(
                    str(stored.file.path),
                    f"tensor {stored.name!r} holds {largest}, and {quantization.name} no more than {limit}",
                )
            as_bytes = from_floats if quantization in FLOAT_TYPES else pack
            data[first : first + len(values)] = as_bytes(values, quantization)
            return piece.nbytes

        with one_core_threads() as threads:
            for nbytes in threads.map(pack_rows, range(0, rows, step)):
                self._advance(nbytes)
        precision = stored.quantization if quantization in FLOAT_TYPES else quantization
        return QuantizedTensor(data, quantization, unread.shape, precision=precision)

    def _advance(self, nbytes: int) -> None:
        self._done += nbytes
        if self._on_progress is not None:
            self._on_progress(self._done, self._total)


@contextmanager
def one_core_threads() -> Iterator[ThreadPoolExecutor]:
    """As many threads as torch has, each of which computes on one core.

    Packing is hundreds of small operations. Where torch divides each among its threads, they wait for each other after
    every one, and on a machine that is busy with something else they wait most of the time.
    """
    num_threads = torch.get_num_threads()
    threads = ThreadPoolExecutor(num_threads, "packing", initializer=torch.set_num_threads, initargs=(1,))
    try:
        yield threads
    finally:
        threads.shutdown(cancel_futures=True)
        torch.set_num_threads(num_threads)  # what a thread sets is what later threads begin with


def _refuse_unknown_types(files: ModelSource) -> None:
    for entry in files.entries.values():
        if not is_supported(entry.quantization):
            raise UnsupportedFile(
                str(entry.file.path),
                f"tensor {entry.name!r} is of type {entry.quantization.name}, which is not supported",
            )


def _refuse_packed(files: ModelSource, scheme: Scheme) -> None:
    packed = Counter(e.quantization.name for e in files.entries.values() if e.quantization not in FLOAT_TYPES)
    if packed:
        raise UnsupportedFile(
            str(files.path),
            f"it cannot be quantized to {scheme.value}: {packed.total()} of its tensors are packed already "
            f"({', '.join(sorted(packed))}); leave --quantize away, or take the model in F32, F16 or BF16",
        )
