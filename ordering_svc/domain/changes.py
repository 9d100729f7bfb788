"""What happened to orderings, in the order in which it was written."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class ChangeType(Enum):
    """What happened to an ordering."""

    CREATED = "created"
    UPDATED = "updated"
    TAGGED = "tagged"
    DELETED = "deleted"
    UNDELETED = "undeleted"
    PURGED = "purged"


@dataclass(frozen=True, slots=True)
class OrderingChange:
    """One change of one ordering; the changes of all orderings are numbered from 1, without gaps."""

    sequence: int
    type: ChangeType
    ordering_id: str
    revision_number: int  # the newest after the change
    revision_id: str
    etag: str  # after the change; empty if nothing is left
    change_time_us: int
    tag: str = ""
    tagged_revision_number: int = 0  # what the tag points at now; 0 if it was taken away


@dataclass(frozen=True, slots=True)
class ChangeBatch:
    """Some changes in order, and the sequence after which to go on."""

    changes: tuple[OrderingChange, ...]
    sequence: int
