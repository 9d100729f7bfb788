"""Orderings and revisions as rows, and back."""

from __future__ import annotations

import json
import time

from sqlalchemy import select
from sqlalchemy.orm import Session

from ordering_svc.domain.naming import RevisionSelector, resource_name
from ordering_svc.domain.ordering import AdapterKind, Ordering, OrderingMetadata, Provenance, Revision, revision_id_of
from ordering_svc.errors import EtagMismatch, InvalidName, OrderingNotDeleted, OrderingNotFound, RevisionNotFound
from ordering_svc.persistence.store import NewFile
from ordering_svc.persistence.tables import OrderingRow, RevisionRow, TagRow

PAST_EVERY_DIGIT = "g"  # sorts after every hex digit


def now_us() -> int:
    """Microseconds since 1970, UTC."""
    return time.time_ns() // 1000


def found(session: Session, ordering_id: str, *, show_deleted: bool = False, is_locked: bool = False) -> OrderingRow:
    """The row of an ordering, locked against other writers if that is wanted. Raises OrderingNotFound."""
    row = session.get(OrderingRow, ordering_id, with_for_update=is_locked or None)
    if row is None:
        raise OrderingNotFound(f"there is no {resource_name(ordering_id)}", resource_name(ordering_id))
    if row.delete_time_us is not None and not show_deleted:
        raise OrderingNotFound(f"{resource_name(ordering_id)} was deleted", resource_name(ordering_id))
    return row


def deleted(session: Session, ordering_id: str) -> OrderingRow:
    """The locked row of a deleted ordering. Raises OrderingNotFound and OrderingNotDeleted."""
    row = found(session, ordering_id, show_deleted=True, is_locked=True)
    if row.delete_time_us is None:
        raise OrderingNotDeleted(ordering_id)
    return row


def newest(session: Session, row: OrderingRow) -> RevisionRow:
    """The newest revision of an ordering."""
    return session.get_one(RevisionRow, (row.ordering_id, row.revision_number))


def selected(session: Session, row: OrderingRow, selector: RevisionSelector | None) -> RevisionRow:
    """The newest revision or the selected one: what the text is as a number, as the start of an id, as a tag.

    Raises:
        RevisionNotFound, InvalidName: there is none, or several ids start so.
    """
    if selector is None:
        return newest(session, row)
    if selector.number is not None:
        numbered = session.get(RevisionRow, (row.ordering_id, selector.number))
        if numbered is not None:
            return numbered
    if selector.tag is not None:
        tag = session.get(TagRow, (row.ordering_id, selector.tag))
        if tag is not None:
            return session.get_one(RevisionRow, (row.ordering_id, tag.revision_number))
    name = f"{resource_name(row.ordering_id)}@{selector.text}"
    ids: dict[str, int] = {}
    if selector.id_prefix is not None:
        query = (
            select(RevisionRow.revision_id, RevisionRow.revision_number)
            .where(
                RevisionRow.ordering_id == row.ordering_id,
                RevisionRow.revision_id >= selector.id_prefix,
                RevisionRow.revision_id < selector.id_prefix + PAST_EVERY_DIGIT,
            )
            .order_by(RevisionRow.revision_number)
        )
        ids = {match.revision_id: match.revision_number for match in session.execute(query)}
    if not ids:
        raise RevisionNotFound(f"there is no {name}; the newest revision is {row.revision_number}", name)
    if len(ids) > 1:
        raise InvalidName("name", f"{name} can mean {', '.join(sorted(ids)[:4])}: write more digits")
    return session.get_one(RevisionRow, (row.ordering_id, next(iter(ids.values()))))


def check_etag(row: OrderingRow, given: str | None) -> None:
    """Raises EtagMismatch if the given etag is not the current one."""
    current = etag_of(row)
    if given is not None and given != current:
        raise EtagMismatch(row.ordering_id, given, current)


def etag_of(row: OrderingRow) -> str:
    """The etag of an ordering as the row stands."""
    made = Revision(row.revision_number, b"", 0, Provenance(""))
    return Ordering(row.ordering_id, OrderingMetadata(), row.change_number, row.create_time_us, made).etag


def write_metadata(row: OrderingRow, metadata: OrderingMetadata) -> None:
    """Put the metadata into the row."""
    row.kind = metadata.kind.value
    row.adapter_model_id = metadata.adapter_model_id
    row.description = metadata.description
    row.labels = json.dumps(dict(metadata.labels), sort_keys=True)


def new_revision(ordering_id: str, number: int, file: NewFile, time_us: int) -> RevisionRow:
    """The row of a revision that is to be."""
    return RevisionRow(
        ordering_id=ordering_id,
        revision_number=number,
        revision_id=revision_id_of(file.content),
        num_bytes=len(file.content),
        content=file.content,
        create_time_us=time_us,
        base_model_id=file.base_model_id,
        method=file.provenance.method,
        config_digest=file.provenance.config_digest,
        service_version=file.provenance.service_version,
        model=file.provenance.model,
        source=file.provenance.source,
        arguments=file.provenance.arguments,
        module_order=file.provenance.module_order,
    )


def shown(session: Session, row: OrderingRow, revision: RevisionRow) -> Ordering:
    """The ordering as one of its revisions shows it."""
    tags = (
        select(TagRow.tag)
        .where(TagRow.ordering_id == row.ordering_id, TagRow.revision_number == revision.revision_number)
        .order_by(TagRow.tag)
    )
    return ordering_of(row, revision, tuple(session.scalars(tags)))


def ordering_of(row: OrderingRow, revision: RevisionRow, tags: tuple[str, ...]) -> Ordering:
    """The values in the rows."""
    metadata = OrderingMetadata(
        AdapterKind(row.kind), row.adapter_model_id, row.description, dict(sorted(json.loads(row.labels).items()))
    )
    provenance = Provenance(
        revision.method,
        revision.config_digest,
        revision.service_version,
        revision.model,
        revision.source,
        revision.arguments,
        revision.module_order,
    )
    made = Revision(
        revision.revision_number,
        bytes(revision.content),
        revision.create_time_us,
        provenance,
        revision.base_model_id,
    )
    return Ordering(row.ordering_id, metadata, row.change_number, row.create_time_us, made, tags, row.delete_time_us)
