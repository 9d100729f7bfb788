"""What happened to orderings, and how two of their revisions differ, as the client sees it."""

from __future__ import annotations

import datetime
import enum
from dataclasses import dataclass

from loramux.client.adapters import short_name
from loramux.client.errors import broken_answer
from loramux.ordering.v1 import ordering_pb2, ordering_service_pb2


class ChangeType(enum.StrEnum):
    """What happened to an ordering."""

    CREATED = "created"
    UPDATED = "updated"
    TAGGED = "tagged"
    DELETED = "deleted"
    UNDELETED = "undeleted"
    PURGED = "purged"


_CHANGE_TYPES = {
    ordering_pb2.CHANGE_TYPE_CREATED: ChangeType.CREATED,
    ordering_pb2.CHANGE_TYPE_UPDATED: ChangeType.UPDATED,
    ordering_pb2.CHANGE_TYPE_TAGGED: ChangeType.TAGGED,
    ordering_pb2.CHANGE_TYPE_DELETED: ChangeType.DELETED,
    ordering_pb2.CHANGE_TYPE_UNDELETED: ChangeType.UNDELETED,
    ordering_pb2.CHANGE_TYPE_PURGED: ChangeType.PURGED,
}


@dataclass(frozen=True, slots=True)
class OrderingChange:
    """One change of one ordering. `sequence` counts the changes of all orderings, from 1, without gaps.

    Revision and etag are those after the change. `tag` is set for TAGGED only, with `tagged_revision_number`: the
    revision that it points at now, None if it was taken away.
    """

    sequence: int
    type: ChangeType
    id: str
    revision_number: int
    revision_id: str
    etag: str
    change_time: datetime.datetime
    tag: str | None
    tagged_revision_number: int | None


@dataclass(frozen=True, slots=True)
class Difference:
    """One difference between two documents: a path into them, and both values as JSON; None where there is none."""

    field: str
    before: str | None
    after: str | None


@dataclass(frozen=True, slots=True)
class OrderingDiff:
    """How two revisions differ: field by field, and as a few lines for people.

    `same_file` says that the files are equal byte for byte; without differences they may still be laid out differently.
    """

    differences: tuple[Difference, ...]
    text: str
    same_file: bool


def change_from_proto(message: ordering_pb2.OrderingChange) -> OrderingChange:
    """The value for a change. Raises Internal for a type that this client does not know."""
    kind = _CHANGE_TYPES.get(message.type)
    if kind is None:
        raise broken_answer(f"the service sent the unknown change type {message.type}: is it newer than this client?")
    return OrderingChange(
        sequence=message.sequence,
        type=kind,
        id=short_name(message.name),
        revision_number=message.revision_number,
        revision_id=message.revision_id,
        etag=message.etag,
        change_time=message.change_time.ToDatetime(tzinfo=datetime.UTC),
        tag=message.tag or None,
        tagged_revision_number=message.tagged_revision_number or None,
    )


def diff_from_proto(message: ordering_service_pb2.DiffOrderingsResponse) -> OrderingDiff:
    """The value for a comparison."""
    differences = tuple(
        Difference(
            field=entry.field,
            before=entry.before if entry.HasField("before") else None,
            after=entry.after if entry.HasField("after") else None,
        )
        for entry in message.differences
    )
    return OrderingDiff(differences, message.text, message.same_file)
