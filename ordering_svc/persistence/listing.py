"""Lists in pages: each begins where the one before ended, so no page is slower than the first."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from sqlalchemy import Select, select, tuple_
from sqlalchemy.orm import Session

from ordering_svc.domain.sorting import SortField
from ordering_svc.persistence.documents import found, ordering_of
from ordering_svc.persistence.filters import condition
from ordering_svc.persistence.store import ListQuery, Page
from ordering_svc.persistence.tables import OrderingRow, RevisionRow, TagRow

SORT_KEYS: dict[SortField, tuple[Any, ...]] = {
    SortField.ORDERING_ID: (OrderingRow.ordering_id,),
    SortField.CREATE_TIME: (OrderingRow.create_time_us, OrderingRow.ordering_id),
    SortField.UPDATE_TIME: (OrderingRow.update_time_us, OrderingRow.ordering_id),
}
IS_NEWEST = (RevisionRow.ordering_id == OrderingRow.ordering_id) & (
    RevisionRow.revision_number == OrderingRow.revision_number
)


def list_orderings(session: Session, query: ListQuery, limit: int, max_bytes: int) -> Page:
    """A page of the newest revisions."""
    rows = session.execute(_page_of(query, session).limit(limit + 1)).all()
    kept = [row for row, _ in rows[: _fitting([size for _, size in rows], limit, max_bytes)]]
    ids = [row.ordering_id for row in kept]
    newest = select(RevisionRow).join(OrderingRow, IS_NEWEST).where(OrderingRow.ordering_id.in_(ids))
    revisions = {revision.ordering_id: revision for revision in session.scalars(newest)}
    tagged = (
        select(TagRow)
        .join(
            OrderingRow,
            (TagRow.ordering_id == OrderingRow.ordering_id) & (TagRow.revision_number == OrderingRow.revision_number),
        )
        .where(OrderingRow.ordering_id.in_(ids))
        .order_by(TagRow.tag)
    )
    tags: dict[str, list[str]] = defaultdict(list)
    for tag in session.scalars(tagged):
        tags[tag.ordering_id].append(tag.tag)
    orderings = [ordering_of(row, revisions[row.ordering_id], tuple(tags[row.ordering_id])) for row in kept]
    return Page(orderings, has_more=len(kept) < len(rows))


def _page_of(query: ListQuery, session: Session) -> Select[OrderingRow, int]:
    selection = select(OrderingRow, RevisionRow.num_bytes).join(RevisionRow, IS_NEWEST)
    if not query.show_deleted:
        selection = selection.where(OrderingRow.delete_time_us.is_(None))
    if query.filter is not None:
        selection = selection.where(condition(query.filter, session.get_bind().dialect.name))
    key = SORT_KEYS[query.order.field]
    if query.after is not None:
        columns, last = tuple_(*key), tuple_(*query.after)
        selection = selection.where(columns < last if query.order.is_descending else columns > last)
    return selection.order_by(*(column.desc() if query.order.is_descending else column for column in key))


def list_revisions(
    session: Session, ordering_id: str, before: int | None, limit: int, max_bytes: int, *, show_deleted: bool
) -> Page:
    """A page of an ordering's revisions, newest first. Raises OrderingNotFound."""
    row = found(session, ordering_id, show_deleted=show_deleted)
    numbers = (
        select(RevisionRow.revision_number, RevisionRow.num_bytes)
        .where(RevisionRow.ordering_id == ordering_id)
        .order_by(RevisionRow.revision_number.desc())
        .limit(limit + 1)
    )
    if before is not None:
        numbers = numbers.where(RevisionRow.revision_number < before)
    sizes = [(number, size) for number, size in session.execute(numbers)]
    kept = [number for number, _ in sizes[: _fitting([size for _, size in sizes], limit, max_bytes)]]
    wanted = (
        select(RevisionRow)
        .where(RevisionRow.ordering_id == ordering_id, RevisionRow.revision_number.in_(kept))
        .order_by(RevisionRow.revision_number.desc())
    )
    tags: dict[int, list[str]] = defaultdict(list)
    for tag in session.scalars(select(TagRow).where(TagRow.ordering_id == ordering_id).order_by(TagRow.tag)):
        tags[tag.revision_number].append(tag.tag)
    revisions = [
        ordering_of(row, revision, tuple(tags[revision.revision_number])) for revision in session.scalars(wanted)
    ]
    return Page(revisions, has_more=len(kept) < len(sizes))


def _fitting(sizes: list[int], limit: int, max_bytes: int) -> int:
    """How many of the entries a page takes: at least one, if there is one."""
    total = 0
    for count, size in enumerate(sizes[:limit]):
        total += size
        if count and total > max_bytes:
            return count
    return min(limit, len(sizes))
