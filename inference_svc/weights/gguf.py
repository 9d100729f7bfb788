"""A GGUF file: its metadata, and its tensors still packed."""

from __future__ import annotations

import math
import mmap
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from inference_svc.weights.errors import FileMissing, MalformedFile
from inference_svc.weights.gguf_header import MetadataValue, TensorEntry, read_header
from inference_svc.weights.quantization import QuantizedTensor
from inference_svc.weights.source import SourceFormat


@dataclass(frozen=True, slots=True, eq=False)
class GgufFile:
    """A checked file; tensor data is read when a tensor is asked for."""

    path: Path
    metadata: Mapping[str, MetadataValue]
    entries: Mapping[str, TensorEntry]
    format: SourceFormat = SourceFormat.GGUF

    @classmethod
    def open(cls, path: Path) -> GgufFile:
        """Read and check the header.

        Raises:
            FileMissing, MalformedFile, UnsupportedFile: see gguf_header.
        """
        try:
            # A pipe would block the open: look first.
            if not stat.S_ISREG(path.stat().st_mode):
                raise FileMissing(str(path), "is not a file")
            with path.open("rb") as file:
                if path.stat().st_size == 0:
                    raise MalformedFile(str(path), "the file is empty")
                with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped, memoryview(mapped) as data:
                    header = read_header(str(path), data)
        except OSError as error:
            raise FileMissing(str(path), f"cannot be read: {error.strerror}") from error
        return cls(path, header.metadata, header.tensors)

    def tensor(self, name: str) -> QuantizedTensor:
        """Read a tensor into memory as it is packed in the file; all axes before the last one are its rows.

        Raises:
            FileMissing, MalformedFile: the file is gone or shorter by now.
        """
        entry = self.entries[name]
        rows = math.prod(entry.shape[:-1])
        data = torch.empty((rows, entry.nbytes // rows), dtype=torch.uint8)
        try:
            with self.path.open("rb") as file:
                file.seek(entry.offset)
                # Straight into the tensor: no second copy, and nothing that outlives a change of the file.
                count = file.readinto(data.numpy().data)
        except OSError as error:
            raise FileMissing(str(self.path), f"cannot be read: {error.strerror}") from error
        if count != entry.nbytes:
            raise MalformedFile(str(self.path), f"tensor {name!r} is cut off: the file changed while it was read")
        return QuantizedTensor(data, entry.quantization, (rows, entry.shape[-1]))
