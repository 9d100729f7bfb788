"""What the headers of files beside a document say: base checkpoints, adapters, classifiers. Never weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum

from ordering_svc.domain.architectures import EMBEDDINGS


class FaultKind(Enum):
    """Why a file could not be read."""

    MISSING = "missing"
    MALFORMED = "malformed"
    OUTSIDE = "outside"  # of the folders that may be read
    UNKNOWN_PLACE = "unknown place"  # nobody said where, or it is not on this machine: nothing is wrong with it


@dataclass(frozen=True, slots=True)
class FileFault:
    """A file or folder that could not be read, and why."""

    kind: FaultKind
    file: str  # as problems name it
    message: str  # one sentence


@dataclass(frozen=True, slots=True)
class TensorHeader:
    """What a header says of one tensor."""

    dtype: str  # as safetensors names it
    shape: tuple[int, ...]  # slowest axis first


JsonConfig = Mapping[str, object]
TensorHeaders = Mapping[str, TensorHeader]  # by name


@dataclass(frozen=True, slots=True)
class CheckpointHeader:
    """The weights of a base model."""

    file: str  # as problems name it
    shapes: Mapping[str, tuple[int, ...] | None]  # by module path; None: packed in a way that hides the shape
    quantization: str = ""  # of most of its matrices, for instance `Q4_K`; empty: not a quantized GGUF file
    bits_per_weight: float = 0.0  # of its matrices on average, where it is quantized

    @property
    def hidden_size(self) -> int | None:
        """The width of the hidden states, if the embeddings tell it."""
        shape = self.shapes.get(EMBEDDINGS)
        return shape[1] if shape is not None and len(shape) == 2 else None


@dataclass(frozen=True, slots=True)
class AdapterFiles:
    """The folder of one LoRA adapter."""

    folder: str  # as problems name it
    config: JsonConfig | FileFault  # `adapter_config.json`
    tensors: TensorHeaders | FileFault  # `adapter_model.safetensors`
    file_names: tuple[str, ...]  # of the files in it, sorted


@dataclass(frozen=True, slots=True)
class NamedAdapter:
    """An adapter that the document names, and what is at the place it gives."""

    name: str
    field: str  # where the document names it
    entry: int  # place in its list
    files: AdapterFiles | FileFault


@dataclass(frozen=True, slots=True)
class XLoraFiles:
    """The files of an X-LoRA mixture beside its adapters."""

    is_peft: bool  # PEFT's layout: `adapter_config.json`, and the classifier in `adapter_model.safetensors`
    config_file: str  # as problems name it
    config: JsonConfig | FileFault
    classifier_file: str
    classifier: TensorHeaders | FileFault


@dataclass(frozen=True, slots=True)
class AdapterHeaders:
    """All that an ordering names beside the base model."""

    xlora: XLoraFiles | None  # None: there is no X-LoRA at the place, or no place
    adapters: Iterable[NamedAdapter]  # may be read as it is judged, once: only one adapter need be in memory
