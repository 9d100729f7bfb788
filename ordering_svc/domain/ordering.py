"""The ordering and its parts, as values."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

REVISION_ID_DIGITS = 16
MAX_FILE_BYTES = 16 * 2**20
MAX_NAMES = 4096
MAX_LAYERS = 65536
MAX_PRELOAD_ADAPTERS = 4096
DOCUMENT_KEYS = ("order", "layers", "base_model_id", "preload_adapters")


class AdapterKind(Enum):
    """What the names in `order` stand for."""

    UNSPECIFIED = "unspecified"
    LORA = "lora"
    XLORA = "xlora"


@dataclass(frozen=True, slots=True)
class LayerRow:
    """One entry of `layers`."""

    path: str
    row: int  # of the classifier's layer axis


@dataclass(frozen=True, slots=True)
class PreloadAdapter:
    """One entry of `preload_adapters`."""

    name: str
    adapter_model_id: str


@dataclass(frozen=True, slots=True)
class OrderingDocument:
    """The content of an ordering file; None where the file lacks the key."""

    order: tuple[str, ...] | None = None
    layers: tuple[LayerRow, ...] | None = None  # in file order
    base_model_id: str | None = None
    preload_adapters: tuple[PreloadAdapter, ...] | None = None


@dataclass(frozen=True, slots=True)
class Provenance:
    """How a revision's document was made."""

    method: str  # `written`, `imported`, `generated`, `derived` or `rolled_back`
    config_digest: str = ""  # SHA-256 of the config that was read, in hex
    service_version: str = ""
    model: str = ""  # path or hub id of the model whose config was read
    source: str = ""  # the revision it was made from: `orderings/{ordering}@{number}`
    arguments: str = ""  # how it was asked for, as a JSON object
    module_order: str = ""  # the release of transformers whose order of modules was followed


@dataclass(frozen=True, slots=True)
class OrderingMetadata:
    """What the owner says beside the file; belongs to the ordering, not to a revision."""

    kind: AdapterKind = AdapterKind.UNSPECIFIED
    adapter_model_id: str = ""
    description: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Revision:
    """One immutable state of the document: the bytes of its file are the truth."""

    number: int  # 1 is the first, without gaps
    file: bytes
    create_time_us: int  # microseconds since 1970, UTC
    provenance: Provenance
    base_model_id: str = ""  # what the document says, for filters

    @property
    def revision_id(self) -> str:
        """Content address: the first 16 hex digits of the file's SHA-256."""
        return revision_id_of(self.file)


@dataclass(frozen=True, slots=True)
class Ordering:
    """An ordering as one of its revisions shows it."""

    ordering_id: str
    metadata: OrderingMetadata
    change_number: int  # grows by one with every change
    create_time_us: int
    revision: Revision
    tags: tuple[str, ...] = ()  # those that point at this revision, sorted
    delete_time_us: int | None = None

    @property
    def etag(self) -> str:
        """Quoted, and different after every change."""
        return f'"{self.change_number:x}-{digest_of(f"{self.ordering_id}/{self.create_time_us}".encode())[:12]}"'


def digest_of(content: bytes) -> str:
    """SHA-256 in hex."""
    return hashlib.sha256(content).hexdigest()


def revision_id_of(file: bytes) -> str:
    """The revision id that these bytes have in every ordering."""
    return digest_of(file)[:REVISION_ID_DIGITS]
