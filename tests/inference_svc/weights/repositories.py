"""Files as repositories of a hub have them: real in what is looked at before a download, made up in the rest."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

from inference_svc.weights.source import TensorSource

STRING, UINT32 = 8, 4  # types of GGUF metadata


def gguf_bytes(
    architecture: str = "llama", *, extra: int = 0, seed: int = 0, size: int = 5000, tensor: str = "weight"
) -> bytes:
    """A GGUF file with one tensor of `size` values; `extra` bytes of metadata come before it is described."""

    def text(value: bytes) -> bytes:
        return struct.pack("<Q", len(value)) + value

    entries = text(b"general.architecture") + struct.pack("<I", STRING) + text(architecture.encode())
    entries += text(b"extra") + struct.pack("<I", STRING) + text(b"x" * extra)
    info = text(tensor.encode()) + struct.pack("<IQIQ", 1, size, 0, 0)
    header = b"GGUF" + struct.pack("<IQQ", 3, 1, 2) + entries + info
    return header + b"\0" * (-len(header) % 32) + random.Random(seed).randbytes(4 * size)


def safetensors_bytes(seed: int, name: str = "weight", dtype: str = "F32", size: int = 5000) -> bytes:
    """A safetensors file with one tensor of `size` values."""
    width = 4 if dtype == "F32" else 2
    header = json.dumps({name: {"dtype": dtype, "shape": [size], "data_offsets": [0, width * size]}}).encode()
    return struct.pack("<Q", len(header)) + header + random.Random(seed).randbytes(width * size)


def checkpoint(shards: Sequence[str] = (), model_type: str = "llama") -> dict[str, bytes]:
    """A repository with a model in safetensors, and much else."""
    files = {
        "config.json": json.dumps({"model_type": model_type}).encode(),
        "generation_config.json": b"{}",
        "tokenizer.json": b'{"model": {}}',
        "tokenizer_config.json": b"{}",
        "chat_template.jinja": b"{{ messages }}",
        "README.md": b"read me",
        "pytorch_model.bin": b"PK" * 2000,
        "consolidated.safetensors": safetensors_bytes(91),
        "original/params.json": b"{}",
        "onnx/model.onnx": b"onnx" * 1000,
    }
    if shards:
        weight_map = {f"tensor.{index}": shard for index, shard in enumerate(shards)}
        files["model.safetensors.index.json"] = json.dumps({"weight_map": weight_map}).encode()
    for index, shard in enumerate(shards or ["model.safetensors"]):
        files[shard] = safetensors_bytes(index, f"tensor.{index}")
    return files


class Checks:
    """A check of models that remembers what it was asked, and refuses what it is told to."""

    def __init__(self, refusal: Exception | None = None) -> None:
        self.asked: list[TensorSource] = []
        self._refusal = refusal

    def __call__(self, source: TensorSource) -> None:
        self.asked.append(source)
        if self._refusal is not None:
            raise self._refusal


class MadeUpListing:
    """A listing of files that are nowhere, but for the small ones."""

    name = "org/name"
    holder = "the repository"

    def __init__(self, folder: Path, sizes: Mapping[str, int], contents: Mapping[str, str]) -> None:
        self.sizes = {**dict.fromkeys(contents, 1), **sizes}
        self._folder = folder
        for name, content in contents.items():
            (folder / name).write_text(content)

    def reference(self, file: str) -> str:
        return f"{self.name}:{file}"

    def fetch(self, file: str) -> Path:
        return self._folder / file
