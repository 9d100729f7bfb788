"""Finds the checkpoint of a base model in a folder, or in a file, and reads its headers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ordering_svc.allowed_roots import AllowedRoots
from ordering_svc.checkpoint_headers.gguf_checkpoint import read_gguf_checkpoint
from ordering_svc.domain.architectures import EMBEDDINGS, OUTPUT_HEAD, ModelStructure
from ordering_svc.domain.headers import CheckpointHeader, FileFault, TensorHeader
from ordering_svc.domain.problems import shown
from ordering_svc.file_headers.files import UnreadableFile, malformed, opened
from ordering_svc.file_headers.json_object import parsed_object
from ordering_svc.file_headers.safetensors import read_safetensors_header

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
MAX_INDEX_BYTES = 16 * 2**20
MAX_INDEX_MARKS = 2**19
MAX_SHARDS = 1024

_WEIGHT = ".weight"
_PACKED = (".qweight", ".weight_packed")  # of GPTQ, AWQ and compressed tensors
_PLAIN = frozenset(("F16", "BF16", "F32", "F64", "F8_E4M3", "F8_E5M2"))


def read_checkpoint(path: Path, structure: ModelStructure, roots: AllowedRoots) -> CheckpointHeader | FileFault | None:
    """The headers of the checkpoint at a folder or `.gguf` file inside the roots; None if the folder has none."""
    try:
        if path.is_file():
            return read_gguf_checkpoint(path, path.name, structure, roots)
        if _is_there(path / INDEX_NAME):
            return _of_shards(path, roots)
        if _is_there(path / SINGLE_NAME):
            return _of_tensors(SINGLE_NAME, read_safetensors_header(path / SINGLE_NAME, SINGLE_NAME, roots))
        files = sorted(file.name for file in path.iterdir() if file.suffix.lower() == ".gguf")
        return read_gguf_checkpoint(path / files[0], files[0], structure, roots) if files else None
    except UnreadableFile as error:
        return error.fault


def _is_there(path: Path) -> bool:
    return path.is_symlink() or path.exists()


def _of_shards(folder: Path, roots: AllowedRoots) -> CheckpointHeader:
    """Each tensor must be in the shard that the index names."""
    with opened(folder / INDEX_NAME, INDEX_NAME, roots) as (content, size):
        if size > MAX_INDEX_BYTES:
            raise malformed(INDEX_NAME, f"it has {size} bytes, the limit is {MAX_INDEX_BYTES}")
        index = parsed_object(content.read(MAX_INDEX_BYTES), INDEX_NAME, MAX_INDEX_MARKS)
    places = index.get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(shard, str) for shard in places.values()):
        raise malformed(INDEX_NAME, "it has no weight_map of tensor to file")
    shards = sorted(set(places.values()))
    if len(shards) > MAX_SHARDS:
        raise malformed(INDEX_NAME, f"it names {len(shards)} files, the limit is {MAX_SHARDS}")
    tensors: dict[str, TensorHeader] = {}
    for shard in shards:
        if shard != Path(shard).name or "\0" in shard:
            raise malformed(INDEX_NAME, f"it names the file `{shown(shard)}`, which is not beside it")
        there = read_safetensors_header(folder / shard, shard, roots)
        missing = next((name for name, place in places.items() if place == shard and name not in there), None)
        if missing is not None:
            raise malformed(shard, f"{INDEX_NAME} says that `{shown(missing)}` is in it, and it is not")
        tensors |= there
    return _of_tensors(INDEX_NAME, tensors)


def _of_tensors(file: str, tensors: Mapping[str, TensorHeader]) -> CheckpointHeader:
    shapes: dict[str, tuple[int, ...] | None] = {}
    for name, tensor in tensors.items():
        if name.endswith(_WEIGHT):
            shapes[name.removesuffix(_WEIGHT)] = tensor.shape if tensor.dtype in _PLAIN else None
        elif name.endswith(_PACKED):
            shapes[name.rpartition(".")[0]] = None
    if EMBEDDINGS in shapes:
        shapes.setdefault(OUTPUT_HEAD, shapes[EMBEDDINGS])  # tied
    return CheckpointHeader(file, shapes)
