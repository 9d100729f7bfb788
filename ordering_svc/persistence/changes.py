"""The row of all changes: numbered in the order in which they are committed."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import cast

from sqlalchemy import Table, insert, select, update
from sqlalchemy.orm import Session

from ordering_svc.domain.changes import ChangeBatch, ChangeType, OrderingChange
from ordering_svc.persistence.documents import now_us
from ordering_svc.persistence.tables import ChangeCounterRow, ChangeRow

# Written to as tables: an object for each row would cost more than the rows.
COUNTER = cast(Table, ChangeCounterRow.__table__)
CHANGES = cast(Table, ChangeRow.__table__)


@dataclass(frozen=True, slots=True)
class NewChange:
    """A change that is to be recorded."""

    type: ChangeType
    ordering_id: str
    revision_number: int
    revision_id: str
    etag: str
    tag: str = ""
    tagged_revision_number: int = 0


def record(session: Session, change: NewChange) -> None:
    """Give the change the next number.

    The last thing that a transaction does: from the update on, it holds the only row of the counter until it has
    committed, so numbers become visible in their order, and a rolled back one is used again.
    """
    counted = update(COUNTER).values(newest=COUNTER.c.newest + 1).returning(COUNTER.c.newest)
    sequence = session.execute(counted).scalar_one()
    session.execute(
        insert(CHANGES).values(
            sequence=sequence,
            type=change.type.value,
            ordering_id=change.ordering_id,
            revision_number=change.revision_number,
            revision_id=change.revision_id,
            etag=change.etag,
            change_time_us=now_us(),
            tag=change.tag,
            tagged_revision_number=change.tagged_revision_number,
        )
    )


def newest_sequence(session: Session) -> int:
    """The number of the newest change; 0 before the first."""
    return session.scalars(select(ChangeCounterRow.newest)).one()


def read_after(session: Session, sequence: int, ordering_ids: Collection[str], limit: int) -> ChangeBatch:
    """At most `limit` changes after `sequence`; without ids, of all orderings."""
    newest = newest_sequence(session)  # before the changes: those up to here are there for certain
    query = (
        select(ChangeRow)
        .where(ChangeRow.sequence > sequence, ChangeRow.sequence <= newest)
        .order_by(ChangeRow.sequence)
        .limit(limit)
    )
    if ordering_ids:
        query = query.where(ChangeRow.ordering_id.in_(sorted(ordering_ids)))
    changes = tuple(_change(row) for row in session.scalars(query))
    is_full = len(changes) == limit
    return ChangeBatch(changes, changes[-1].sequence if is_full else max(sequence, newest))


def _change(row: ChangeRow) -> OrderingChange:
    return OrderingChange(
        row.sequence,
        ChangeType(row.type),
        row.ordering_id,
        row.revision_number,
        row.revision_id,
        row.etag,
        row.change_time_us,
        row.tag,
        row.tagged_revision_number,
    )
