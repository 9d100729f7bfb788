"""`loramux ordering create|get|list|revisions|update|delete`: orderings as stored resources."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from loramux.cli.session import JsonOption, OrderingAddressOption, open_session
from loramux.cli.tables import ordering_table, orderings_table
from loramux.client import AdapterKind, OrderingDocument, PreloadAdapter

IdArgument = Annotated[str, typer.Argument(metavar="ID", help="Id of the ordering.")]
NameArgument = Annotated[str, typer.Argument(metavar="ID[@REVISION]", help="The ordering.")]
KindOption = Annotated[AdapterKind | None, typer.Option(help="What `order` names.")]
PlaceOption = Annotated[
    str | None, typer.Option("--adapter-model-id", help="Where its adapters live: a folder or a hub id.")
]
DescriptionOption = Annotated[str | None, typer.Option(help="What it is for.")]
LabelOption = Annotated[list[str] | None, typer.Option("--label", metavar="KEY=VALUE", help="Repeatable.")]
EtagOption = Annotated[str | None, typer.Option(help="Refuse if the ordering has another etag by now.")]
FileArgument = Annotated[Path | None, typer.Argument(metavar="[FILE]", help="An ordering file to start from.")]
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
    ordering_address: OrderingAddressOption = None,
    as_json: JsonOption = False,
) -> None:
    """Store a new ordering, from a file, from options, or from both."""
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
        )
    session.emit(ordering, ordering_table)


def get(
    context: typer.Context,
    name: NameArgument,
    ordering_address: OrderingAddressOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show an ordering: its newest revision, or the one named."""
    session = open_session(context, as_json, None, ordering_address)
    with session.client() as client:
        session.emit(client.orderings.get(name), ordering_table)


def list_orderings(
    context: typer.Context, ordering_address: OrderingAddressOption = None, as_json: JsonOption = False
) -> None:
    """List all orderings."""
    session = open_session(context, as_json, None, ordering_address)
    with session.client() as client:
        session.emit(client.orderings.list(), orderings_table)


def revisions(
    context: typer.Context,
    ordering_id: IdArgument,
    ordering_address: OrderingAddressOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the revisions of an ordering, newest first."""
    session = open_session(context, as_json, None, ordering_address)
    with session.client() as client:
        session.emit(client.orderings.revisions(ordering_id), orderings_table)


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
    etag: EtagOption = None,
    ordering_address: OrderingAddressOption = None,
    as_json: JsonOption = False,
) -> None:
    """Change an ordering; a changed document becomes a new revision."""
    session = open_session(context, as_json, None, ordering_address)
    with session.client() as client:
        document: OrderingDocument | None = None
        if file is not None or order is not None or base_model_id is not None or preload:
            current = client.orderings.get(ordering_id)
            # What the document is derived from must still be there when the change arrives.
            etag = etag or current.etag
            document = _document(current.document, file, order, base_model_id, preload)
        ordering = client.orderings.update(
            ordering_id,
            etag=etag,
            document=document,
            kind=kind,
            adapter_model_id=adapter_model_id,
            description=description,
            labels=pairs(label) if label else None,
        )
    session.emit(ordering, ordering_table)


def delete(
    context: typer.Context,
    ordering_id: IdArgument,
    etag: EtagOption = None,
    ordering_address: OrderingAddressOption = None,
    as_json: JsonOption = False,
) -> None:
    """Delete an ordering; its id stays taken."""
    session = open_session(context, as_json, None, ordering_address)
    with session.client() as client:
        session.emit(client.orderings.delete(ordering_id, etag=etag), lambda gone: f"deleted {gone.id}")


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
