"""`loramux ordering create|show|list|update`: orderings as stored resources."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from loramux.cli.ordering_tables import ordering_table, orderings_table
from loramux.cli.session import JsonOption, OrderingAddressOption, Session, open_session
from loramux.client import AdapterKind, Ordering, OrderingDocument, PreloadAdapter


def quoted(etag: str | None) -> str | None:
    """An etag is a quoted string (RFC 7232), and a shell takes the quotes away: they are put back."""
    return f'"{etag}"' if etag and not etag.endswith('"') else etag


IdArgument = Annotated[str, typer.Argument(metavar="ID", help="Id of the ordering.")]
NameArgument = Annotated[
    str, typer.Argument(metavar="ID[@REVISION]", help="The ordering; a revision is a number, an id, or a tag.")
]
KindOption = Annotated[AdapterKind | None, typer.Option(help="What `order` names.")]
PlaceOption = Annotated[
    str | None, typer.Option("--adapter-model-id", help="Where its adapters live: a folder or a hub id.")
]
DescriptionOption = Annotated[str | None, typer.Option(help="What it is for.")]
LabelOption = Annotated[list[str] | None, typer.Option("--label", metavar="KEY=VALUE", help="Repeatable.")]
RemoveLabelOption = Annotated[list[str] | None, typer.Option("--remove-label", metavar="KEY", help="Repeatable.")]
EtagOption = Annotated[
    str | None, typer.Option(help="Refuse if the ordering has another etag by now.", callback=quoted)
]
ValidateOnlyOption = Annotated[bool, typer.Option("--validate-only", help="Answer as if, and write nothing.")]
RequestIdOption = Annotated[
    str | None, typer.Option(metavar="UUID", help="Sent again with the same one, the write happens once.")
]
FileArgument = Annotated[Path | None, typer.Argument(metavar="FILE", help="An ordering file to start from.")]
OrderOption = Annotated[str | None, typer.Option("--order", metavar="A,B,...", help="Adapter names, in order.")]
BaseModelOption = Annotated[str | None, typer.Option("--base-model-id", help="The base model it is for.")]
PreloadOption = Annotated[list[str] | None, typer.Option("--preload", metavar="NAME=PLACE", help="Repeatable.")]


def create(
    context: typer.Context,
    ordering_id: IdArgument,
    file: FileArgument = None,
    order: OrderOption = None,
    base_model_id: BaseModelOption = None,
    preload: PreloadOption = None,
    kind: KindOption = None,
    adapter_model_id: PlaceOption = None,
    description: DescriptionOption = None,
    label: LabelOption = None,
    validate_only: ValidateOnlyOption = False,
    request_id: RequestIdOption = None,
    ordering_address: OrderingAddressOption = None,
    as_json: JsonOption = False,
) -> None:
    """Store a new ordering, from a file, from options, or from both.

    Example: loramux ordering create demo demo.json --kind xlora --label team=nlp
    """
    session = open_session(context, as_json, None, ordering_address)
    document = _document(OrderingDocument(), file, order, base_model_id, preload)
    with session.client() as client:
        ordering = client.orderings.create(
            ordering_id,
            document,
            kind=kind,
            adapter_model_id=adapter_model_id or "",
            description=description or "",
            labels=pairs(label),
            validate_only=validate_only,
            request_id=request_id,
        )
    session.emit(ordering, ordering_table)
    note_validate_only(session, validate_only)


def show(
    context: typer.Context,
    name: NameArgument,
    show_deleted: Annotated[bool, typer.Option("--show-deleted", help="Also a deleted ordering.")] = False,
    ordering_address: OrderingAddressOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show an ordering at its newest revision, or at the one named: document, metadata, tags, how it was made.

    Example: loramux ordering show demo@prod
    """
    session = open_session(context, as_json, None, ordering_address)
    with session.client() as client:
        session.emit(client.orderings.get(name, show_deleted=show_deleted), ordering_table)


def list_orderings(
    context: typer.Context,
    filter: Annotated[
        str,
        typer.Option(
            "--filter",
            metavar="FILTER",
            help="Fields: ordering_id, kind, base_model_id, adapter_model_id, description, labels.KEY, create_time, "
            "update_time, revision_number. Operators: = != < <= > >= and : (contains); AND OR NOT and parentheses.",
        ),
    ] = "",
    order_by: Annotated[
        str,
        typer.Option(
            "--order-by", metavar="FIELD", help="ordering_id, create_time or update_time; then perhaps ' desc'."
        ),
    ] = "",
    show_deleted: Annotated[bool, typer.Option("--show-deleted", help="Also deleted orderings.")] = False,
    ordering_address: OrderingAddressOption = None,
    as_json: JsonOption = False,
) -> None:
    """List orderings, each at its newest revision.

    Example: loramux ordering list --filter 'kind = xlora AND labels.team = "nlp"' --order-by 'update_time desc'
    """
    session = open_session(context, as_json, None, ordering_address)
    with session.client() as client:
        session.emit(client.orderings.list(filter, order_by=order_by, show_deleted=show_deleted), orderings_table)


def update(
    context: typer.Context,
    ordering_id: IdArgument,
    file: FileArgument = None,
    order: OrderOption = None,
    base_model_id: BaseModelOption = None,
    preload: PreloadOption = None,
    kind: KindOption = None,
    adapter_model_id: PlaceOption = None,
    description: DescriptionOption = None,
    label: LabelOption = None,
    remove_label: RemoveLabelOption = None,
    etag: EtagOption = None,
    validate_only: ValidateOnlyOption = False,
    request_id: RequestIdOption = None,
    ordering_address: OrderingAddressOption = None,
    as_json: JsonOption = False,
) -> None:
    """Change what is named, and leave the rest as it is; a changed document becomes a new revision.

    Example: loramux ordering update demo --description 'For the help desk.' --label team=support
    """
    session = open_session(context, as_json, None, ordering_address)
    changes_document = file is not None or order is not None or base_model_id is not None or bool(preload)
    changes_labels = bool(label or remove_label)
    metadata = (kind, adapter_model_id, description)
    if not changes_document and not changes_labels and all(value is None for value in metadata):
        raise typer.BadParameter("say what to change, for instance --description TEXT or --label KEY=VALUE")
    with session.client() as client:
        document: OrderingDocument | None = None
        labels: dict[str, str] | None = None
        if changes_document or changes_labels:
            current = client.orderings.get(ordering_id)
            # What the change is derived from must still be there when it arrives.
            etag = etag or current.etag
            document = _document(current.document, file, order, base_model_id, preload) if changes_document else None
            labels = _labels(current, label, remove_label) if changes_labels else None
        ordering = client.orderings.update(
            ordering_id,
            etag=etag,
            document=document,
            kind=kind,
            adapter_model_id=adapter_model_id,
            description=description,
            labels=labels,
            validate_only=validate_only,
            request_id=request_id,
        )
    session.emit(ordering, ordering_table)
    note_validate_only(session, validate_only)


def note_validate_only(session: Session, validate_only: bool) -> None:
    """Says that nothing was written, where nothing was."""
    if validate_only:
        session.say("validated only: nothing was written")


def names(text: str) -> tuple[str, ...]:
    """`a, b` as ("a", "b"): split at commas, stripped, without empty parts."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def pairs(words: Sequence[str] | None) -> dict[str, str]:
    """`KEY=VALUE` words as a dictionary. Raises BadParameter."""
    result: dict[str, str] = {}
    for word in words or ():
        key, separator, value = word.partition("=")
        if not separator or not key:
            raise typer.BadParameter(f"{word!r} is not KEY=VALUE")
        result[key] = value
    return result


def _labels(current: Ordering, added: list[str] | None, removed: list[str] | None) -> dict[str, str]:
    missing = [key for key in removed or () if key not in current.labels]
    if missing:
        there = ", ".join(current.labels) or "none"
        raise typer.BadParameter(f"{current.id} has no label {missing[0]!r} to remove; there are: {there}")
    kept = {key: value for key, value in current.labels.items() if key not in (removed or ())}
    return {**kept, **pairs(added)}


def _document(
    start: OrderingDocument, file: Path | None, order: str | None, base_model_id: str | None, preload: list[str] | None
) -> OrderingDocument:
    read = OrderingDocument.from_json(file.read_bytes(), str(file)) if file is not None else start
    return OrderingDocument(
        base_model_id=read.base_model_id if base_model_id is None else base_model_id,
        order=read.order if order is None else names(order),
        layers=read.layers,
        preload_adapters=tuple(PreloadAdapter(name, place) for name, place in pairs(preload).items())
        if preload
        else read.preload_adapters,
    )
