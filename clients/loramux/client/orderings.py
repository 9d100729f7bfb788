"""Ordering files and the resources that keep them, as the client sees them."""

from __future__ import annotations

import datetime
import enum
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loramux.client.adapters import AdapterKind, short_name
from loramux.client.errors import broken_answer, invalid_argument
from loramux.client.whole_files import write_whole
from loramux.ordering.v1 import ordering_pb2

ALL_LINEAR = "all-linear"
"""PEFT's word for every linear layer but the output head."""


@dataclass(frozen=True, slots=True)
class PreloadAdapter:
    """An adapter that is loaded, ready to activate."""

    name: str
    adapter_model_id: str


@dataclass(frozen=True, slots=True)
class OrderingDocument:
    """The content of an ordering file; a key that the file lacks is None. `layers` keeps the order of the file."""

    base_model_id: str | None = None
    order: tuple[str, ...] | None = None
    layers: Mapping[str, int] | None = None
    preload_adapters: tuple[PreloadAdapter, ...] | None = None

    @classmethod
    def from_json(cls, text: str | bytes, source: str = "the file") -> OrderingDocument:
        """Reads an ordering file. Raises InvalidArgument if it is not JSON of that form; ValidateOrdering says more."""
        try:
            content: Any = json.loads(text)
            preload = content.get("preload_adapters")
            order = content.get("order")
            layers = content.get("layers")
            return cls(
                base_model_id=content.get("base_model_id"),
                order=None if order is None else tuple(order),
                layers=None if layers is None else {str(path): int(row) for path, row in layers.items()},
                preload_adapters=None
                if preload is None
                else tuple(PreloadAdapter(entry["name"], entry["adapter_model_id"]) for entry in preload),
            )
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise invalid_argument(source, f"is not an ordering file ({error!r})") from error


@dataclass(frozen=True, slots=True)
class Provenance:
    """How a revision's document was made; fields as in `loramux.ordering.v1.Provenance`, empty where they say nothing.

    `method` is `written`, `imported`, `generated`, `derived` or `rolled_back`.
    """

    method: str
    config_digest: str
    service_version: str
    model: str
    source: str
    arguments: str
    module_order: str


@dataclass(frozen=True, slots=True)
class Ordering:
    """A stored ordering at one revision; fields as in `loramux.ordering.v1.Ordering`.

    `tags` are those that point at this revision; `delete_time` is None while the ordering is there.
    """

    id: str
    kind: AdapterKind | None
    document: OrderingDocument
    adapter_model_id: str
    description: str
    labels: Mapping[str, str]
    revision_id: str
    revision_number: int
    etag: str
    create_time: datetime.datetime
    update_time: datetime.datetime
    delete_time: datetime.datetime | None
    tags: tuple[str, ...]
    provenance: Provenance


@dataclass(frozen=True, slots=True)
class OrderingFile:
    """The bytes of an ordering file and the revision they are."""

    json: bytes
    revision_id: str

    def save(self, path: Path | str) -> None:
        """Writes the file, byte for byte, wholly or not at all. Raises OSError."""
        write_whole(Path(path), self.json)


@dataclass(frozen=True, slots=True)
class GeneratedOrdering:
    """What GenerateOrdering made: the document, the same as a file, and the config it was made from."""

    document: OrderingDocument
    json: bytes
    architecture: str
    config_digest: str
    ordering: Ordering | None = None
    """What was stored, if a destination was given."""


@dataclass(frozen=True, slots=True)
class DerivedOrdering:
    """What DeriveOrdering made: the document, the same as a file, and what was stored."""

    document: OrderingDocument
    json: bytes
    ordering: Ordering | None = None


@dataclass(frozen=True, slots=True)
class Destination:
    """Where a document that was made is stored; metadata that is None stays as it is, or empty for a new ordering."""

    id: str
    allow_existing: bool = False
    etag: str | None = None
    kind: AdapterKind | None = None
    adapter_model_id: str | None = None
    description: str | None = None
    labels: Mapping[str, str] | None = None


class Severity(enum.StrEnum):
    """How bad a problem is."""

    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True, slots=True)
class Problem:
    """One finding: a stable code, a path into the document, one sentence, and what to do.

    `file` is the file beside the document that shows it, for instance an adapter's config; empty for the document.
    """

    code: str
    field: str
    message: str
    severity: Severity
    hint: str
    file: str


@dataclass(frozen=True, slots=True)
class Validation:
    """All problems of a document; `valid` if none of them is an error."""

    valid: bool
    problems: tuple[Problem, ...]


@dataclass(frozen=True, slots=True)
class LocalModel:
    """A folder with a `config.json`, or a `.gguf` file, on the ordering service's machine, inside its allowed roots."""

    path: str


@dataclass(frozen=True, slots=True)
class HubModel:
    """A hub id, optionally `@revision`."""

    id: str


@dataclass(frozen=True, slots=True)
class ConfigModel:
    """The text of a `config.json` that the caller has read."""

    config_json: str = field(repr=False)


ModelReference = LocalModel | HubModel | ConfigModel


def ordering_id_of(path: Path) -> str:
    """The id of a file: its name without the ending, in lower case, with hyphens for `_`, `.` and blanks."""
    return path.stem.lower().translate(str.maketrans("_. ", "---"))


def ordering_resource(name: str, revision: str | int | None = None) -> str:
    """`orderings/{id}` or `orderings/{id}@{revision}`; the revision may also be part of the name."""
    bare = short_name(name)
    if revision is None:
        return f"orderings/{bare}"
    if "@" in bare:
        raise invalid_argument("revision", f"is {revision!r}, but the name {name!r} has one already")
    return f"orderings/{bare}@{revision}"


def model_to_proto(model: ModelReference) -> ordering_pb2.ModelReference:
    """The message for a model."""
    if isinstance(model, LocalModel):
        return ordering_pb2.ModelReference(path=model.path)
    if isinstance(model, HubModel):
        return ordering_pb2.ModelReference(hub_id=model.id)
    return ordering_pb2.ModelReference(config_json=model.config_json)


def kind_to_proto(kind: AdapterKind | None) -> ordering_pb2.AdapterKind.ValueType:
    """The message's kind; None is unspecified."""
    if kind is None:
        return ordering_pb2.ADAPTER_KIND_UNSPECIFIED
    return ordering_pb2.ADAPTER_KIND_XLORA if kind is AdapterKind.XLORA else ordering_pb2.ADAPTER_KIND_LORA


def destination_to_proto(destination: Destination) -> ordering_pb2.Destination:
    """The message for a destination: what is None stays absent."""
    return ordering_pb2.Destination(
        ordering_id=short_name(destination.id),
        allow_existing=destination.allow_existing,
        etag=destination.etag,
        kind=None if destination.kind is None else kind_to_proto(destination.kind),
        adapter_model_id=destination.adapter_model_id,
        description=destination.description,
        labels=None if destination.labels is None else ordering_pb2.Labels(labels=destination.labels),
    )


def modules_to_proto(modules: Sequence[str] | str) -> ordering_pb2.ModuleSelection:
    """The message for module names, as PEFT takes them: a list, a regular expression, or `all-linear`."""
    if not isinstance(modules, str):
        return ordering_pb2.ModuleSelection(names=ordering_pb2.ModuleNames(names=modules))
    if modules.lower() == ALL_LINEAR:
        return ordering_pb2.ModuleSelection(all_linear=True)
    return ordering_pb2.ModuleSelection(pattern=modules)


def document_to_proto(document: OrderingDocument) -> ordering_pb2.OrderingDocument:
    """The message for a document: what is None stays absent."""
    message = ordering_pb2.OrderingDocument()
    if document.base_model_id is not None:
        message.base_model_id = document.base_model_id
    if document.order is not None:
        message.order.CopyFrom(ordering_pb2.AdapterNames(names=document.order))
    if document.layers is not None:
        rows = [ordering_pb2.LayerRow(path=path, row=row) for path, row in document.layers.items()]
        message.layers.CopyFrom(ordering_pb2.LayerRows(rows=rows))
    if document.preload_adapters is not None:
        adapters = [
            ordering_pb2.PreloadAdapter(name=entry.name, adapter_model_id=entry.adapter_model_id)
            for entry in document.preload_adapters
        ]
        message.preload_adapters.CopyFrom(ordering_pb2.PreloadAdapters(adapters=adapters))
    return message


def document_from_proto(message: ordering_pb2.OrderingDocument) -> OrderingDocument:
    """The value for a document."""
    preload = message.preload_adapters.adapters
    return OrderingDocument(
        base_model_id=message.base_model_id if message.HasField("base_model_id") else None,
        order=tuple(message.order.names) if message.HasField("order") else None,
        layers={row.path: row.row for row in message.layers.rows} if message.HasField("layers") else None,
        preload_adapters=tuple(PreloadAdapter(entry.name, entry.adapter_model_id) for entry in preload)
        if message.HasField("preload_adapters")
        else None,
    )


def ordering_from_proto(message: ordering_pb2.Ordering) -> Ordering:
    """The value for a stored ordering."""
    kinds = {ordering_pb2.ADAPTER_KIND_LORA: AdapterKind.LORA, ordering_pb2.ADAPTER_KIND_XLORA: AdapterKind.XLORA}
    return Ordering(
        id=short_name(message.name).partition("@")[0],
        kind=kinds.get(message.kind),
        document=document_from_proto(message.document),
        adapter_model_id=message.adapter_model_id,
        description=message.description,
        labels=dict(message.labels),
        revision_id=message.revision_id,
        revision_number=message.revision_number,
        etag=message.etag,
        create_time=message.create_time.ToDatetime(tzinfo=datetime.UTC),
        update_time=message.update_time.ToDatetime(tzinfo=datetime.UTC),
        delete_time=message.delete_time.ToDatetime(tzinfo=datetime.UTC) if message.HasField("delete_time") else None,
        tags=tuple(message.tags),
        provenance=_provenance(message.provenance),
    )


def _provenance(message: ordering_pb2.Provenance) -> Provenance:
    return Provenance(
        method=message.method,
        config_digest=message.config_digest,
        service_version=message.service_version,
        model=message.model,
        source=message.source,
        arguments=message.arguments,
        module_order=message.module_order,
    )


def problem_from_proto(message: ordering_pb2.Problem) -> Problem:
    """The value for a finding. Raises Internal for an unknown severity."""
    severities = {ordering_pb2.SEVERITY_ERROR: Severity.ERROR, ordering_pb2.SEVERITY_WARNING: Severity.WARNING}
    severity = severities.get(message.severity)
    if severity is None:
        raise broken_answer(f"the service sent the unknown severity {message.severity}")
    return Problem(message.code, message.field, message.message, severity, message.hint, message.file)
