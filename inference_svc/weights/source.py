"""Where a model's tensors come from, whatever the files: what architectures read, and what file formats offer."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Protocol

from gguf import GGMLQuantizationType

from inference_svc.weights.quantization import QuantizedTensor


class SourceFormat(Enum):
    """Which names tensors and metadata go by."""

    GGUF = "gguf"  # `blk.0.attn_q.weight`; the metadata keys of the file: `llama.block_count`
    HUGGING_FACE = "hugging face"  # `model.layers.0.self_attn.q_proj.weight`; the keys of config.json


class SourceEntry(Protocol):
    """A tensor as the files describe it, before anything is read."""

    @property
    def name(self) -> str:
        """As in the files."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Slowest axis first, as in torch: (out_features, in_features)."""
        ...

    @property
    def quantization(self) -> GGMLQuantizationType:
        """How its values are packed; F32, F16 and BF16 are plain."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes of the packed data."""
        ...


class TensorSource(Protocol):
    """The files of one model, with checked headers; data is read when a tensor is asked for."""

    @property
    def path(self) -> Path:
        """What messages name: the file, the first of a split one, or the folder."""
        ...

    @property
    def format(self) -> SourceFormat:
        """Whose names these are."""
        ...

    @property
    def metadata(self) -> Mapping[str, object]:
        """GGUF metadata, or the object in config.json."""
        ...

    @property
    def entries(self) -> Mapping[str, SourceEntry]:
        """All tensors by name, over all files."""
        ...

    def tensor(self, name: str) -> QuantizedTensor:
        """Read one tensor, still packed, as a matrix: all axes before the last one are its rows.

        Raises:
            WeightsError: its file is gone, or shorter than its header says.
        """
        ...
