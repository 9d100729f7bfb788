"""The answers that writes with a request id were given, so that a repeated write gets the same one."""

from __future__ import annotations

import dataclasses
import json

from sqlalchemy import delete, insert, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from ordering_svc.domain.ordering import AdapterKind, Ordering, OrderingMetadata, Provenance, Revision
from ordering_svc.errors import InvalidValue
from ordering_svc.persistence.documents import now_us
from ordering_svc.persistence.store import REQUEST_LIFETIME_US, WriteRequest
from ordering_svc.persistence.tables import RequestRow, RevisionRow

MAX_CLEANED = 16  # old answers that one write removes: more than it adds


class Repeated(Exception):
    """Another transaction has just answered the same request."""


def recall(session: Session, request: WriteRequest) -> Ordering | None:
    """The answer of this request, if it has had one in the last 24 hours. Raises InvalidValue for another digest."""
    if request.request_id is None:
        return None
    row = session.get(RequestRow, request.request_id)
    if row is None or row.create_time_us < now_us() - REQUEST_LIFETIME_US:
        return None
    if row.digest != request.digest:
        raise InvalidValue(
            "request_id",
            f"{request.request_id} was used for another request in the last 24 hours: make a new id for every write",
        )
    content = row.content
    if content is None:
        content = session.get_one(RevisionRow, (row.ordering_id, row.revision_number)).content
    return _read(row.answer, bytes(content))


def remember(session: Session, request: WriteRequest, answer: Ordering, *, is_purged: bool) -> None:
    """Keep the answer with the write that it tells of. Raises Repeated."""
    if request.request_id is None:
        return
    now = now_us()
    _clean(session, request.request_id, now - REQUEST_LIFETIME_US)
    try:
        session.execute(
            insert(RequestRow).values(
                request_id=request.request_id,
                digest=request.digest,
                create_time_us=now,
                ordering_id=answer.ordering_id,
                revision_number=answer.revision.number,
                answer=_written(answer),
                content=answer.revision.file if is_purged else None,
            )
        )
    except IntegrityError:
        raise Repeated from None


def keep_contents(session: Session, ordering_id: str) -> None:
    """Before a purge: what requests were answered with stays until it is too old."""
    content = (
        select(RevisionRow.content)
        .where(
            RevisionRow.ordering_id == RequestRow.ordering_id,
            RevisionRow.revision_number == RequestRow.revision_number,
        )
        .scalar_subquery()
    )
    of_ordering = (RequestRow.ordering_id == ordering_id) & RequestRow.content.is_(None)
    session.execute(update(RequestRow).where(of_ordering).values(content=content))


def _clean(session: Session, request_id: str, before_us: int) -> None:
    """Remove some answers that are too old, this request's own for certain."""
    is_old = RequestRow.create_time_us < before_us
    session.execute(delete(RequestRow).where(is_old, RequestRow.request_id == request_id))
    old = select(RequestRow.request_id).where(is_old).order_by(RequestRow.create_time_us).limit(MAX_CLEANED)
    ids = session.scalars(old.with_for_update(skip_locked=True)).all()  # SQLite has one writer and no such clause
    if ids:
        session.execute(delete(RequestRow).where(RequestRow.request_id.in_(ids)))


def _written(answer: Ordering) -> str:
    metadata = dataclasses.asdict(answer.metadata) | {"kind": answer.metadata.kind.value}
    revision = {
        "number": answer.revision.number,
        "create_time_us": answer.revision.create_time_us,
        "provenance": dataclasses.asdict(answer.revision.provenance),
        "base_model_id": answer.revision.base_model_id,
    }
    return json.dumps(
        {
            "ordering_id": answer.ordering_id,
            "metadata": metadata,
            "change_number": answer.change_number,
            "create_time_us": answer.create_time_us,
            "revision": revision,
            "tags": answer.tags,
            "delete_time_us": answer.delete_time_us,
        }
    )


def _read(answer: str, content: bytes) -> Ordering:
    values = json.loads(answer)
    metadata = values.pop("metadata")
    revision = values.pop("revision")
    provenance = Provenance(**revision.pop("provenance"))
    return Ordering(
        metadata=OrderingMetadata(**(metadata | {"kind": AdapterKind(metadata["kind"])})),
        revision=Revision(file=content, provenance=provenance, **revision),
        **(values | {"tags": tuple(values["tags"])}),
    )
