"""The calls of the ordering service."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypedDict
from uuid import uuid4

from loramux.client.adapters import AdapterKind, short_name
from loramux.client.calls import ORDERINGS, AnyCall, Call, Page, PageCall
from loramux.client.errors import invalid_argument
from loramux.client.orderings import (
    DerivedOrdering,
    Destination,
    GeneratedOrdering,
    ModelReference,
    Ordering,
    OrderingDocument,
    OrderingFile,
    PreloadAdapter,
    Validation,
    destination_to_proto,
    document_from_proto,
    document_to_proto,
    kind_to_proto,
    model_to_proto,
    modules_to_proto,
    ordering_from_proto,
    ordering_id_of,
    ordering_resource,
    problem_from_proto,
)
from loramux.ordering.v1 import ordering_pb2, ordering_service_pb2

OrderingSource = str | bytes | Path | OrderingDocument
"""`str`: a stored ordering by name; `Path`: an ordering file; `bytes`: its content; or a document."""


class WriteOptions(TypedDict, total=False):
    """What every write takes. A write that is sent again with the same request_id within a day happens once."""

    request_id: str | None
    """A UUID; without one the client makes it, and sends the write again with it while the service is away."""
    validate_only: bool
    """Answer as the write would, and write nothing."""


class WriteFields(TypedDict):
    """The fields that every request of a write has."""

    request_id: str
    validate_only: bool


def write_fields(options: WriteOptions) -> WriteFields:
    """The options of a write as fields of its request, with a request_id in any case."""
    return {
        "request_id": options.get("request_id") or str(uuid4()),
        "validate_only": options.get("validate_only", False),
    }


def create_ordering(
    ordering_id: str,
    document: OrderingDocument,
    *,
    kind: AdapterKind | None,
    adapter_model_id: str,
    description: str,
    labels: Mapping[str, str],
    options: WriteOptions,
) -> AnyCall[Ordering]:
    """Stores a new ordering."""
    ordering = ordering_pb2.Ordering(
        kind=kind_to_proto(kind),
        document=document_to_proto(document),
        adapter_model_id=adapter_model_id,
        description=description,
        labels=labels,
    )
    request = ordering_service_pb2.CreateOrderingRequest(
        ordering_id=short_name(ordering_id), ordering=ordering, **write_fields(options)
    )
    return Call(ORDERINGS + "CreateOrdering", request, ordering_pb2.Ordering, ordering_from_proto)


def get_ordering(name: str, revision: str | int | None, show_deleted: bool) -> AnyCall[Ordering]:
    """One revision of an ordering."""
    request = ordering_service_pb2.GetOrderingRequest(name=ordering_resource(name, revision), show_deleted=show_deleted)
    return Call(ORDERINGS + "GetOrdering", request, ordering_pb2.Ordering, ordering_from_proto)


def list_orderings(filter: str, order_by: str, show_deleted: bool) -> PageCall[Ordering]:
    """The pages of all orderings that the filter lets through; pages stay small: an ordering holds its document."""

    def page(token: str) -> AnyCall[Page[Ordering]]:
        return Call(
            ORDERINGS + "ListOrderings",
            ordering_service_pb2.ListOrderingsRequest(
                page_token=token, filter=filter, order_by=order_by, show_deleted=show_deleted
            ),
            ordering_service_pb2.ListOrderingsResponse,
            lambda answer: Page(tuple(map(ordering_from_proto, answer.orderings)), answer.next_page_token),
        )

    return page


def list_revisions(name: str, show_deleted: bool) -> PageCall[Ordering]:
    """The pages of the revisions of an ordering, newest first."""

    def page(token: str) -> AnyCall[Page[Ordering]]:
        return Call(
            ORDERINGS + "ListOrderingRevisions",
            ordering_service_pb2.ListOrderingRevisionsRequest(
                name=ordering_resource(name), page_token=token, show_deleted=show_deleted
            ),
            ordering_service_pb2.ListOrderingRevisionsResponse,
            lambda answer: Page(tuple(map(ordering_from_proto, answer.revisions)), answer.next_page_token),
        )

    return page


def update_ordering(
    name: str,
    *,
    etag: str | None,
    document: OrderingDocument | None,
    kind: AdapterKind | None,
    adapter_model_id: str | None,
    description: str | None,
    labels: Mapping[str, str] | None,
    options: WriteOptions,
) -> AnyCall[Ordering]:
    """Replaces what is not None."""
    request = ordering_service_pb2.UpdateOrderingRequest(
        name=ordering_resource(name),
        etag=etag,
        document=None if document is None else document_to_proto(document),
        kind=None if kind is None else kind_to_proto(kind),
        adapter_model_id=adapter_model_id,
        description=description,
        labels=None if labels is None else ordering_pb2.Labels(labels=labels),
        **write_fields(options),
    )
    return Call(ORDERINGS + "UpdateOrdering", request, ordering_pb2.Ordering, ordering_from_proto)


def delete_ordering(name: str, etag: str | None, options: WriteOptions) -> AnyCall[Ordering]:
    """Deletes an ordering; returns it as it was."""
    return Call(
        ORDERINGS + "DeleteOrdering",
        ordering_service_pb2.DeleteOrderingRequest(name=ordering_resource(name), etag=etag, **write_fields(options)),
        ordering_service_pb2.DeleteOrderingResponse,
        lambda answer: ordering_from_proto(answer.ordering),
    )


def import_ordering(
    file: bytes | str | Path,
    ordering_id: str | None,
    *,
    allow_existing: bool,
    etag: str | None,
    kind: AdapterKind | None,
    adapter_model_id: str,
    description: str,
    labels: Mapping[str, str] | None,
    options: WriteOptions,
) -> AnyCall[Ordering]:
    """Stores a file unchanged; without an id, the file's name is its id. Raises OSError if the file cannot be read."""
    if isinstance(file, bytes):
        content = file
    else:
        content = Path(file).read_bytes()
        ordering_id = ordering_id or ordering_id_of(Path(file))
    if ordering_id is None:
        raise invalid_argument("id", "is missing: bytes have no file name to take it from")
    request = ordering_service_pb2.ImportOrderingRequest(
        ordering_id=short_name(ordering_id),
        json=content,
        allow_existing=allow_existing,
        etag=etag,
        kind=kind_to_proto(kind),
        adapter_model_id=adapter_model_id,
        description=description,
        labels=None if labels is None else ordering_pb2.Labels(labels=labels),
        **write_fields(options),
    )
    return Call(ORDERINGS + "ImportOrdering", request, ordering_pb2.Ordering, ordering_from_proto)


def export_ordering(name: str, revision: str | int | None) -> AnyCall[OrderingFile]:
    """The file of a revision, byte for byte."""
    return Call(
        ORDERINGS + "ExportOrdering",
        ordering_service_pb2.ExportOrderingRequest(name=ordering_resource(name, revision)),
        ordering_service_pb2.ExportOrderingResponse,
        lambda answer: OrderingFile(answer.json, answer.revision_id),
    )


def generate_ordering(
    model: ModelReference,
    targets: Sequence[str] | str,
    adapter_names: Sequence[str],
    base_model_id: str | None,
    *,
    exclude: Sequence[str] | str,
    layers_to_transform: Sequence[int],
    layers_pattern: Sequence[str],
    destination: Destination | None,
    options: WriteOptions,
) -> AnyCall[GeneratedOrdering]:
    """Makes a document from a model's config, and stores it if there is a destination."""
    request = ordering_service_pb2.GenerateOrderingRequest(
        model=model_to_proto(model),
        targets=modules_to_proto(targets),
        exclude_modules=modules_to_proto(exclude) if exclude else None,
        layers_to_transform=layers_to_transform,
        layers_pattern=layers_pattern,
        adapter_names=adapter_names,
        base_model_id=base_model_id,
        destination=None if destination is None else destination_to_proto(destination),
        **write_fields(options),
    )
    return Call(
        ORDERINGS + "GenerateOrdering",
        request,
        ordering_service_pb2.GenerateOrderingResponse,
        lambda answer: GeneratedOrdering(
            document_from_proto(answer.document),
            answer.json,
            answer.architecture,
            answer.config_digest,
            _stored(answer),
        ),
        slow=True,
    )


def derive_ordering(
    source: str | bytes | Path,
    *,
    adapter_names: Sequence[str] | None,
    add_preload: Sequence[PreloadAdapter],
    remove_preload: Sequence[str],
    destination: Destination | None,
    options: WriteOptions,
) -> AnyCall[DerivedOrdering]:
    """Makes a document from a stored one or a file, and stores it if there is a destination. Raises OSError."""
    request = ordering_service_pb2.DeriveOrderingRequest(
        adapter_names=None if adapter_names is None else ordering_pb2.AdapterNames(names=adapter_names),
        add_preload_adapters=[
            ordering_pb2.PreloadAdapter(name=entry.name, adapter_model_id=entry.adapter_model_id)
            for entry in add_preload
        ],
        remove_preload_adapters=remove_preload,
        destination=None if destination is None else destination_to_proto(destination),
        **write_fields(options),
    )
    if isinstance(source, str):
        request.name = ordering_resource(source)
    else:
        request.json = source if isinstance(source, bytes) else source.read_bytes()
    return Call(
        ORDERINGS + "DeriveOrdering",
        request,
        ordering_service_pb2.DeriveOrderingResponse,
        lambda answer: DerivedOrdering(document_from_proto(answer.document), answer.json, _stored(answer)),
    )


def _stored(
    answer: ordering_service_pb2.GenerateOrderingResponse | ordering_service_pb2.DeriveOrderingResponse,
) -> Ordering | None:
    return ordering_from_proto(answer.ordering) if answer.HasField("ordering") else None


def validate_ordering(
    source: OrderingSource,
    *,
    kind: AdapterKind | None,
    model: ModelReference | None,
    quantized_architecture: str,
    check_adapters: bool,
    adapter_model_id: str,
) -> AnyCall[Validation]:
    """Judges a stored ordering, a file or a document. Raises OSError if the file cannot be read."""
    request = ordering_service_pb2.ValidateOrderingRequest(
        kind=kind_to_proto(kind),
        quantized_architecture=quantized_architecture,
        check_adapters=check_adapters,
        adapter_model_id=adapter_model_id,
    )
    if model is not None:
        request.model.CopyFrom(model_to_proto(model))
    if isinstance(source, OrderingDocument):
        request.document.CopyFrom(document_to_proto(source))
    elif isinstance(source, str):
        request.name = ordering_resource(source)
    else:
        request.json = source if isinstance(source, bytes) else source.read_bytes()
    return Call(
        ORDERINGS + "ValidateOrdering",
        request,
        ordering_service_pb2.ValidateOrderingResponse,
        lambda answer: Validation(answer.valid, tuple(map(problem_from_proto, answer.problems))),
        slow=True,
    )
