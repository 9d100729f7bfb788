"""Messages to the values of the domain, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from loramux.ordering.v1 import ordering_pb2, ordering_service_pb2
from ordering_svc.domain.changes import ChangeBatch, ChangeType, OrderingChange
from ordering_svc.domain.derivation import Derivation
from ordering_svc.domain.diff import Difference
from ordering_svc.domain.metadata_validation import MetadataChange
from ordering_svc.domain.naming import parse_name, resource_name
from ordering_svc.domain.ordering import (
    AdapterKind,
    LayerRow,
    Ordering,
    OrderingDocument,
    OrderingMetadata,
    PreloadAdapter,
    digest_of,
)
from ordering_svc.domain.ordering_json import parse_file
from ordering_svc.domain.problems import Problem, Severity
from ordering_svc.domain.target_selection import ALL_LINEAR, TargetSelection
from ordering_svc.errors import InvalidValue
from ordering_svc.judge import Against
from ordering_svc.model_config.reader import HubModel, LocalModel, ModelSource, ModelText
from ordering_svc.orderings import (
    DerivationRequest,
    Derived,
    Generated,
    GenerationRequest,
    Judged,
    ValidationRequest,
)
from ordering_svc.persistence.store import WriteRequest
from ordering_svc.stored_orderings import Destination, ListRequest

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


CHANGE_TYPES: Mapping[ChangeType, ordering_pb2.ChangeType.ValueType] = {
    ChangeType.CREATED: ordering_pb2.CHANGE_TYPE_CREATED,
    ChangeType.UPDATED: ordering_pb2.CHANGE_TYPE_UPDATED,
    ChangeType.TAGGED: ordering_pb2.CHANGE_TYPE_TAGGED,
    ChangeType.DELETED: ordering_pb2.CHANGE_TYPE_DELETED,
    ChangeType.UNDELETED: ordering_pb2.CHANGE_TYPE_UNDELETED,
    ChangeType.PURGED: ordering_pb2.CHANGE_TYPE_PURGED,
}
HOW_FIELDS = ("request_id", "validate_only")  # how a write is asked for, not what


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


def decode_etag(request: Any) -> str | None:  # any request with an etag
    """The etag that guards a change, if one does."""
    return str(request.etag) if request.HasField("etag") else None


def decode_write(request: Any) -> WriteRequest:  # any request of a write
    """How the write is asked for; its digest covers the method and everything else that the request says."""
    what = type(request).FromString(request.SerializeToString())
    for name in HOW_FIELDS:
        what.ClearField(name)
    content = f"{request.DESCRIPTOR.full_name}\0".encode() + what.SerializeToString(deterministic=True)
    request_id = str(request.request_id).lower() if request.HasField("request_id") else None
    return WriteRequest(request_id, digest_of(content), bool(request.validate_only))


def decode_list(request: ordering_service_pb2.ListOrderingsRequest) -> ListRequest:
    """Which orderings to list."""
    return ListRequest(request.page_size, request.page_token, request.filter, request.order_by, request.show_deleted)


def decode_watched(request: ordering_service_pb2.WatchOrderingsRequest) -> frozenset[str]:
    """The ids to watch; none means all. Raises InvalidName."""
    return frozenset(parse_name(name, may_have_revision=False).ordering_id for name in request.names)


def decode_import(request: ordering_service_pb2.ImportOrderingRequest) -> Destination:
    """Where an imported file is stored; metadata that is empty says nothing."""
    change = MetadataChange(
        kind=KINDS[request.kind] if request.kind else None,
        adapter_model_id=request.adapter_model_id or None,
        description=request.description or None,
        labels=dict(request.labels.labels) if request.HasField("labels") else None,
    )
    return Destination(request.ordering_id, request.allow_existing, decode_etag(request), change)


def decode_destination(message: ordering_pb2.Destination) -> Destination:
    """Where a document that was made is stored; metadata that is not set says nothing."""
    change = MetadataChange(
        kind=KINDS[message.kind] if message.HasField("kind") else None,
        adapter_model_id=message.adapter_model_id if message.HasField("adapter_model_id") else None,
        description=message.description if message.HasField("description") else None,
        labels=dict(message.labels.labels) if message.HasField("labels") else None,
    )
    return Destination(message.ordering_id, message.allow_existing, decode_etag(message), change)


def decode_generation(request: ordering_service_pb2.GenerateOrderingRequest) -> GenerationRequest:
    """The model and modules to make an ordering for. Raises InvalidValue if modules are named twice or not at all."""
    if bool(request.target_modules) == request.HasField("targets"):
        raise InvalidValue("targets", "name the modules once: either in targets, or in target_modules")
    named = tuple(request.target_modules)
    selection = TargetSelection(
        target_modules=named or _decode_modules(request.targets),
        exclude_modules=_decode_modules(request.exclude_modules) if request.HasField("exclude_modules") else (),
        layers_to_transform=tuple(request.layers_to_transform),
        layers_pattern=tuple(request.layers_pattern),
    )
    if request.exclude_modules.all_linear:
        raise InvalidValue("exclude_modules", "all_linear says nothing here: name modules, or give a pattern")
    return GenerationRequest(
        model=decode_model(request.model),
        selection=selection,
        adapter_names=tuple(request.adapter_names),
        base_model_id=request.base_model_id if request.HasField("base_model_id") else None,
        destination=decode_destination(request.destination) if request.HasField("destination") else None,
    )


def _decode_modules(message: ordering_pb2.ModuleSelection) -> tuple[str, ...] | str:
    """As in PEFT's LoraConfig: a list, or a string that is a pattern or stands for all linear layers."""
    match message.WhichOneof("selection"):
        case "names":
            return tuple(message.names.names)
        case "pattern":
            return message.pattern
        case _:
            return ALL_LINEAR


def decode_derivation(request: ordering_service_pb2.DeriveOrderingRequest) -> DerivationRequest:
    """What to start from, and what to change in it; the contract lets no request without a source through."""
    derivation = Derivation(
        adapter_names=tuple(request.adapter_names.names) if request.HasField("adapter_names") else None,
        add_preload_adapters=tuple(PreloadAdapter(a.name, a.adapter_model_id) for a in request.add_preload_adapters),
        remove_preload_adapters=tuple(request.remove_preload_adapters),
    )
    destination = decode_destination(request.destination) if request.HasField("destination") else None
    return DerivationRequest(request.name or request.json, derivation, destination)


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
    against = Against(
        kind=KINDS[request.kind],
        model=decode_model(request.model) if request.HasField("model") else None,
        quantized_architecture=request.quantized_architecture,
        checks_adapters=request.check_adapters,
        adapter_model_id=request.adapter_model_id,
    )
    return ValidationRequest(source, against)


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
            model=revision.provenance.model,
            source=revision.provenance.source,
            arguments=revision.provenance.arguments,
            module_order=revision.provenance.module_order,
        ),
        tags=ordering.tags,
        delete_time=None if ordering.delete_time_us is None else _timestamp(ordering.delete_time_us),
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
    """The document, its file, what it was made from, and what was stored."""
    return ordering_service_pb2.GenerateOrderingResponse(
        document=encode_document(generated.document),
        json=generated.file,
        architecture=generated.architecture,
        config_digest=generated.config_digest,
        ordering=None if generated.stored is None else encode_ordering(generated.stored),
    )


def encode_derived(derived: Derived) -> ordering_service_pb2.DeriveOrderingResponse:
    """The document, its file, and what was stored."""
    return ordering_service_pb2.DeriveOrderingResponse(
        document=encode_document(derived.document),
        json=derived.file,
        ordering=None if derived.stored is None else encode_ordering(derived.stored),
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


def encode_differences(
    found: Sequence[Difference], text: str, *, is_same_file: bool
) -> ordering_service_pb2.DiffOrderingsResponse:
    """What differs between two documents."""
    return ordering_service_pb2.DiffOrderingsResponse(
        differences=[ordering_pb2.Difference(field=d.field, before=d.before, after=d.after) for d in found],
        text=text,
        same_file=is_same_file,
    )


def encode_changes(batch: ChangeBatch) -> ordering_service_pb2.WatchOrderingsResponse:
    """One message of a watch."""
    return ordering_service_pb2.WatchOrderingsResponse(
        changes=map(_encode_change, batch.changes), sequence=batch.sequence
    )


def _encode_change(change: OrderingChange) -> ordering_pb2.OrderingChange:
    return ordering_pb2.OrderingChange(
        sequence=change.sequence,
        type=CHANGE_TYPES[change.type],
        name=resource_name(change.ordering_id),
        revision_number=change.revision_number,
        revision_id=change.revision_id,
        etag=change.etag,
        change_time=_timestamp(change.change_time_us),
        tag=change.tag,
        tagged_revision_number=change.tagged_revision_number,
    )


def _timestamp(microseconds: int) -> Timestamp:
    seconds, rest = divmod(microseconds, 1_000_000)
    return Timestamp(seconds=seconds, nanos=rest * 1000)
