"""Messages to the values of the domain, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from google.protobuf.timestamp_pb2 import Timestamp

from loramux.ordering.v1 import ordering_pb2, ordering_service_pb2
from ordering_svc.domain.naming import resource_name
from ordering_svc.domain.ordering import (
    AdapterKind,
    LayerRow,
    Ordering,
    OrderingDocument,
    OrderingMetadata,
    PreloadAdapter,
)
from ordering_svc.domain.ordering_json import parse_file
from ordering_svc.domain.problems import Problem, Severity
from ordering_svc.model_config.reader import HubModel, LocalModel, ModelSource, ModelText
from ordering_svc.orderings import FileImport, Generated, GenerationRequest, Judged, MetadataChange, ValidationRequest

KINDS: Mapping[ordering_pb2.AdapterKind.ValueType, AdapterKind] = {
    ordering_pb2.ADAPTER_KIND_UNSPECIFIED: AdapterKind.UNSPECIFIED,
    ordering_pb2.ADAPTER_KIND_LORA: AdapterKind.LORA,
    ordering_pb2.ADAPTER_KIND_XLORA: AdapterKind.XLORA,
}
KIND_MESSAGES = {kind: message for message, kind in KINDS.items()}
SEVERITIES = {
    Severity.ERROR: ordering_pb2.SEVERITY_ERROR,
    Severity.WARNING: ordering_pb2.SEVERITY_WARNING,
}


def decode_document(message: ordering_pb2.OrderingDocument) -> OrderingDocument:
    """The document; a field that is not set is absent in it too."""
    return OrderingDocument(
        order=tuple(message.order.names) if message.HasField("order") else None,
        layers=tuple(LayerRow(r.path, r.row) for r in message.layers.rows) if message.HasField("layers") else None,
        base_model_id=message.base_model_id if message.HasField("base_model_id") else None,
        preload_adapters=(
            tuple(PreloadAdapter(a.name, a.adapter_model_id) for a in message.preload_adapters.adapters)
            if message.HasField("preload_adapters")
            else None
        ),
    )


def decode_metadata(message: ordering_pb2.Ordering) -> OrderingMetadata:
    """What the owner says beside the file."""
    return OrderingMetadata(KINDS[message.kind], message.adapter_model_id, message.description, dict(message.labels))


def decode_change(request: ordering_service_pb2.UpdateOrderingRequest) -> MetadataChange:
    """The metadata that an update replaces: the fields that are set."""
    return MetadataChange(
        kind=KINDS[request.kind] if request.HasField("kind") else None,
        adapter_model_id=request.adapter_model_id if request.HasField("adapter_model_id") else None,
        description=request.description if request.HasField("description") else None,
        labels=dict(request.labels.labels) if request.HasField("labels") else None,
    )


def decode_update_document(request: ordering_service_pb2.UpdateOrderingRequest) -> OrderingDocument | None:
    """The document that an update replaces, if it does."""
    return decode_document(request.document) if request.HasField("document") else None


def decode_etag(
    request: ordering_service_pb2.UpdateOrderingRequest
    | ordering_service_pb2.DeleteOrderingRequest
    | ordering_service_pb2.ImportOrderingRequest,
) -> str | None:
    """The etag that guards a change, if one does."""
    return request.etag if request.HasField("etag") else None


def decode_import(request: ordering_service_pb2.ImportOrderingRequest) -> FileImport:
    """The import; metadata that is empty says nothing."""
    change = MetadataChange(
        kind=KINDS[request.kind] if request.kind else None,
        adapter_model_id=request.adapter_model_id or None,
        description=request.description or None,
    )
    return FileImport(request.ordering_id, request.json, request.allow_existing, decode_etag(request), change)


def decode_generation(request: ordering_service_pb2.GenerateOrderingRequest) -> GenerationRequest:
    """The model and modules to make an ordering for."""
    return GenerationRequest(
        model=decode_model(request.model),
        target_modules=tuple(request.target_modules),
        adapter_names=tuple(request.adapter_names),
        base_model_id=request.base_model_id if request.HasField("base_model_id") else None,
    )


def decode_validation(request: ordering_service_pb2.ValidateOrderingRequest) -> ValidationRequest:
    """What to judge, and against what; the contract lets no request without a source through."""
    source: Judged
    match request.WhichOneof("source"):
        case "name":
            source = request.name
        case "json":
            source = request.json
        case _:
            source = decode_document(request.document)
    return ValidationRequest(
        source=source,
        kind=KINDS[request.kind] if request.kind else None,
        model=decode_model(request.model) if request.HasField("model") else None,
        quantized_architecture=request.quantized_architecture,
    )


def decode_model(message: ordering_pb2.ModelReference) -> ModelSource:
    """Where the model's config is; the contract lets no reference without one through."""
    match message.WhichOneof("model"):
        case "path":
            return LocalModel(message.path)
        case "hub_id":
            return HubModel(message.hub_id)
        case _:
            return ModelText(message.config_json)


def encode_ordering(ordering: Ordering) -> ordering_pb2.Ordering:
    """An ordering as one of its revisions shows it."""
    revision = ordering.revision
    return ordering_pb2.Ordering(
        name=resource_name(ordering.ordering_id),
        kind=KIND_MESSAGES[ordering.metadata.kind],
        document=encode_document(parse_file(revision.file).document),
        adapter_model_id=ordering.metadata.adapter_model_id,
        description=ordering.metadata.description,
        labels=ordering.metadata.labels,
        revision_id=revision.revision_id,
        revision_number=revision.number,
        etag=ordering.etag,
        create_time=_timestamp(ordering.create_time_us),
        update_time=_timestamp(revision.create_time_us),
        provenance=ordering_pb2.Provenance(
            method=revision.provenance.method,
            config_digest=revision.provenance.config_digest,
            service_version=revision.provenance.service_version,
        ),
    )


def encode_document(document: OrderingDocument) -> ordering_pb2.OrderingDocument:
    """A document; what is absent in it is not set."""
    message = ordering_pb2.OrderingDocument(base_model_id=document.base_model_id)
    if document.order is not None:
        message.order.SetInParent()
        message.order.names.extend(document.order)
    if document.layers is not None:
        message.layers.SetInParent()
        message.layers.rows.extend(ordering_pb2.LayerRow(path=row.path, row=row.row) for row in document.layers)
    if document.preload_adapters is not None:
        message.preload_adapters.SetInParent()
        message.preload_adapters.adapters.extend(
            ordering_pb2.PreloadAdapter(name=adapter.name, adapter_model_id=adapter.adapter_model_id)
            for adapter in document.preload_adapters
        )
    return message


def encode_generated(generated: Generated) -> ordering_service_pb2.GenerateOrderingResponse:
    """The document, its file, and what it was made from."""
    return ordering_service_pb2.GenerateOrderingResponse(
        document=encode_document(generated.document),
        json=generated.file,
        architecture=generated.model.structure.architecture,
        config_digest=generated.model.config_digest,
    )


def encode_problems(problems: Sequence[Problem]) -> ordering_service_pb2.ValidateOrderingResponse:
    """The verdict."""
    return ordering_service_pb2.ValidateOrderingResponse(
        valid=not any(problem.is_error for problem in problems),
        problems=[
            ordering_pb2.Problem(
                code=problem.code,
                field=problem.field,
                message=problem.message,
                severity=SEVERITIES[problem.severity],
                hint=problem.hint,
                file=problem.file,
            )
            for problem in problems
        ],
    )


def _timestamp(microseconds: int) -> Timestamp:
    seconds, rest = divmod(microseconds, 1_000_000)
    return Timestamp(seconds=seconds, nanos=rest * 1000)
