"""The headers of a model on a hub: all that can be judged of it is judged before it is downloaded."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

from inference_svc.weights.gguf import GgufFile
from inference_svc.weights.gguf_header import GgufHeader, read_header
from inference_svc.weights.hub import HubFileReader, HubListing
from inference_svc.weights.json_object import read_json_object
from inference_svc.weights.model_choice import ModelFiles
from inference_svc.weights.opening import ModelSource
from inference_svc.weights.safetensors_header import MAX_HEADER_BYTES, read_safetensors_header
from inference_svc.weights.safetensors_model import CONFIG, PLAIN_TYPES, SafetensorsModel
from inference_svc.weights.stored_tensor import StoredTensor

FIRST_READ_GGUF = 1 << 20  # with the vocabulary, which comes before the tensors
FIRST_READ_SAFETENSORS = 1 << 16
NUM_CONNECTIONS = 8


def hub_source(listing: HubListing, chosen: ModelFiles) -> ModelSource:
    """The model that files of a repository make, as if they were here; a tensor that is read is read from the hub.

    Of a checkpoint in safetensors everything but the weights is downloaded for it, into the folder that is its path.

    Raises:
        MalformedFile, UnsupportedFile: a header or config is broken, or of another kind.
        WeightsError: the hub refuses, or is away.
    """
    if chosen.first_part is not None:
        return _gguf(listing, chosen.files, chosen.first_part)
    config = read_json_object(listing.fetch(CONFIG))
    weights = [file for file in chosen.files if file.endswith(".safetensors")]
    listing.download([file for file in chosen.files if file not in weights])
    with ThreadPoolExecutor(NUM_CONNECTIONS, "headers") as threads:
        headers = threads.map(lambda file: _safetensors_entries(listing.remote(file, FIRST_READ_SAFETENSORS)), weights)
        entries = {entry.name: entry for found in headers for entry in found}
    return SafetensorsModel(listing.folder, config, entries)


def _gguf(listing: HubListing, parts: Sequence[str], first_part: str) -> GgufFile:
    files = [listing.remote(part, FIRST_READ_GGUF) for part in parts]
    headers: list[GgufHeader] = [read_header(str(file.path), file) for file in files]
    entries = {
        entry.name: StoredTensor(entry.name, entry.shape, entry.quantization, entry.nbytes, file, entry.offset)
        for file, header in zip(files, headers, strict=True)
        for entry in header.tensors.values()
    }
    return GgufFile(Path(listing.reference(first_part)), headers[0].metadata, entries)


def _safetensors_entries(file: HubFileReader) -> list[StoredTensor]:
    # The first 8 bytes say how long the header is; what they claim is checked where it is read.
    claimed = int.from_bytes(file.prefix(min(8, file.size))[:8], "little")
    start = file.prefix(min(8 + claimed, file.size, 8 + MAX_HEADER_BYTES))
    return [
        StoredTensor(entry.name, entry.shape, PLAIN_TYPES[entry.dtype], entry.nbytes, file, entry.offset)
        for entry in read_safetensors_header(str(file.path), BytesIO(start), file.size)
    ]
