"""A model in GGUF: one file, or the parts that llama.cpp's `gguf-split` makes of one; its tensors still packed."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from inference_svc.weights.errors import MalformedFile
from inference_svc.weights.gguf_header import GgufHeader, MetadataValue, read_header
from inference_svc.weights.gguf_splits import SplitName, check_parts, part_paths
from inference_svc.weights.pinned_file import PinnedFile
from inference_svc.weights.quantization import QuantizedTensor
from inference_svc.weights.source import SourceFormat
from inference_svc.weights.stored_tensor import StoredTensor

FIRST_READ = 1 << 20


@dataclass(frozen=True, slots=True, eq=False)
class GgufFile:
    """A checked file; tensor data is read when a tensor is asked for."""

    path: Path
    metadata: Mapping[str, MetadataValue]
    entries: Mapping[str, StoredTensor]
    format: SourceFormat = SourceFormat.GGUF

    @classmethod
    def open(cls, path: Path) -> GgufFile:
        """Read and check the header; of any part of a split file, the headers of all its parts.

        Raises:
            FileMissing, MalformedFile, UnsupportedFile: see gguf_header and gguf_splits.
        """
        header, entries = _opened(path)
        name = SplitName.of(path)
        if name is None or name.count == 1:
            if (count := header.metadata.get("split.count", 1)) not in (0, 1):
                raise MalformedFile(
                    str(path),
                    f"it is one of {reprlib.repr(count)} parts, and its name does not say which: "
                    "name them as they were made, NAME-00001-of-00002.gguf and so on",
                )
            return cls(path, header.metadata, entries)
        paths = part_paths(path, name)
        parts = [(header, entries) if part == path else _opened(part) for part in paths]
        check_parts(paths, [part.metadata for part, _ in parts], [len(found) for _, found in parts])
        merged: dict[str, StoredTensor] = {}
        for _, found in parts:
            for entry in found.values():
                if entry.name in merged:
                    raise MalformedFile(
                        str(entry.file.path), f"tensor {entry.name!r} stands in {merged[entry.name].file.path.name} too"
                    )
                merged[entry.name] = entry
        return cls(paths[0], parts[0][0].metadata, merged)

    def tensor(self, name: str) -> QuantizedTensor:
        """Read a tensor into memory as it is packed in the file; all axes before the last one are its rows.

        Raises:
            FileMissing, FileChanged: the file cannot be read, or is not what it was when it was opened.
        """
        return self.entries[name].read()


class _Prefix:
    """The start of a file, read as far as it is needed."""

    def __init__(self, file: PinnedFile) -> None:
        self._file = file
        self._read = b""

    @property
    def size(self) -> int:
        return self._file.size

    def prefix(self, count: int) -> memoryview:
        # Twice as much each time, so that all the copying is a small multiple of the header.
        wanted = min(self.size, max(count, 2 * len(self._read), FIRST_READ))
        if wanted > len(self._read):
            more = bytearray(wanted - len(self._read))
            self._file.read_into(len(self._read), memoryview(more), "the header")
            self._read += more
        return memoryview(self._read)


def _opened(path: Path) -> tuple[GgufHeader, dict[str, StoredTensor]]:
    file = PinnedFile(path)
    if file.size == 0:
        raise MalformedFile(str(path), "the file is empty")
    header = read_header(str(path), _Prefix(file))
    return header, {
        entry.name: StoredTensor(entry.name, entry.shape, entry.quantization, entry.nbytes, file, entry.offset)
        for entry in header.tensors.values()
    }
