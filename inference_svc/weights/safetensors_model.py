"""A model as Hugging Face stores it: a folder with config.json and one safetensors file, or several with an index."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from gguf import GGMLQuantizationType

from inference_svc.weights.errors import FileMissing, MalformedFile, UnsupportedFile
from inference_svc.weights.json_object import read_json_object
from inference_svc.weights.pinned_file import PinnedFile
from inference_svc.weights.quantization import QuantizedTensor
from inference_svc.weights.safetensors_header import read_safetensors_header
from inference_svc.weights.source import SourceFormat
from inference_svc.weights.stored_tensor import StoredTensor

CONFIG = "config.json"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
MAX_SHARDS = 1000

PLAIN_TYPES = {
    torch.float32: GGMLQuantizationType.F32,
    torch.float16: GGMLQuantizationType.F16,
    torch.bfloat16: GGMLQuantizationType.BF16,
}


@dataclass(frozen=True, slots=True, eq=False)
class SafetensorsModel:
    """Checked files; tensors keep the type they have in the file, and are read when they are asked for."""

    path: Path  # the folder
    metadata: Mapping[str, object]  # the object in config.json
    entries: Mapping[str, StoredTensor]
    format: SourceFormat = SourceFormat.HUGGING_FACE

    @classmethod
    def open(cls, folder: Path, single: str = SINGLE) -> SafetensorsModel:
        """Read and check config, index and the headers of all files.

        `single` is the file that holds everything. Where it is not there, or is one of those that the index names, the
        files of the index are the model.

        Raises:
            FileMissing: a file is not there; shards that the index names are listed.
            MalformedFile: a file breaks its format, the index names a tensor that its shard does not hold, or a tensor
                stands in two shards.
            UnsupportedFile: tensors of another type than F32, F16 and BF16.
        """
        config = read_json_object(folder / CONFIG)
        if (quantized := config.get("quantization_config")) is not None:
            method = quantized.get("quant_method") if isinstance(quantized, dict) else quantized
            raise UnsupportedFile(
                str(folder / CONFIG),
                f"the weights are quantized by {reprlib.repr(method)}: take the model as GGUF, or in F32, F16 or BF16, "
                "which can be quantized while it is loaded",
            )
        index_path = folder / INDEX
        index = read_index(index_path) if index_path.is_file() else {}
        if (folder / single).is_file() and single not in index.values():
            return cls(folder, config, _header(folder / single))
        if not index:
            raise FileMissing(str(folder), f"it has neither {single} nor {INDEX}")
        return cls(folder, config, _merged(folder, index))

    def tensor(self, name: str) -> QuantizedTensor:
        """Read a tensor into memory, in its own type; all axes before the last one are its rows.

        Raises:
            FileMissing, FileChanged: the file cannot be read, or is not what it was when it was opened.
        """
        return self.entries[name].read()


def read_index(path: Path) -> dict[str, str]:
    """Which file, beside the index, holds each tensor.

    Raises:
        FileMissing, MalformedFile: it cannot be read, or is no index.
    """
    weight_map = read_json_object(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise MalformedFile(str(path), f"weight_map is {reprlib.repr(weight_map)}, expected tensors and their files")
    for name, file in weight_map.items():
        # Files beside the index and no others: what names a path could name any file of this machine.
        if not isinstance(file, str) or not file.endswith(".safetensors") or "/" in file or "\\" in file:
            raise MalformedFile(
                str(path), f"tensor {reprlib.repr(name)} is said to be in {reprlib.repr(file)}, not in a file beside it"
            )
    if (count := len(set(weight_map.values()))) > MAX_SHARDS:
        raise MalformedFile(str(path), f"it names {count} files, more than the {MAX_SHARDS} allowed")
    return weight_map


def _merged(folder: Path, index: Mapping[str, str]) -> dict[str, StoredTensor]:
    files = sorted(set(index.values()))
    if missing := [file for file in files if not (folder / file).is_file()]:
        raise FileMissing(
            str(folder / INDEX),
            f"{len(missing)} of the {len(files)} files that it names are missing: {_listed(missing)}",
        )
    merged: dict[str, StoredTensor] = {}
    for file in files:
        for entry in _header(folder / file).values():
            if entry.name in merged:
                raise MalformedFile(
                    str(folder / file),
                    f"tensor {reprlib.repr(entry.name)} stands in {merged[entry.name].file.path.name} too",
                )
            merged[entry.name] = entry
    # What a shard holds beyond the index is part of the model all the same, as it is for transformers.
    lost = [name for name, file in index.items() if name not in merged or merged[name].file.path.name != file]
    if lost:
        raise MalformedFile(
            str(folder / INDEX),
            f"tensor {reprlib.repr(lost[0])} is not in {index[lost[0]]} as it says"
            + (f", nor are {len(lost) - 1} others where they should be" if len(lost) > 1 else ""),
        )
    return merged


def _header(path: Path) -> dict[str, StoredTensor]:
    file = PinnedFile(path)
    with file.stream() as stream:
        entries = read_safetensors_header(str(path), stream, file.size)
    return {
        entry.name: StoredTensor(entry.name, entry.shape, PLAIN_TYPES[entry.dtype], entry.nbytes, file, entry.offset)
        for entry in entries
    }


def _listed(names: Sequence[str], shown: int = 5) -> str:
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more
