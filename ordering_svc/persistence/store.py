"""What the use cases need of a store; SQL and the tests' dictionary keep to the same contract suite."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from ordering_svc.domain.naming import RevisionSelector
from ordering_svc.domain.ordering import Ordering, OrderingMetadata, Provenance


@dataclass(frozen=True, slots=True)
class NewFile:
    """The file of a revision that is to be, and how it was made."""

    content: bytes
    provenance: Provenance


@dataclass(frozen=True, slots=True)
class Page:
    """A part of a list, and whether more follows."""

    orderings: Sequence[Ordering]
    has_more: bool


class OrderingStore(Protocol):
    """Keeps orderings and all their revisions.

    Each method is one transaction: it happens wholly or not at all, and when it returns, what it wrote is on disk and
    seen by every later call. All may raise DatabaseBusy, DatabaseNotWritable, DatabaseFull, DatabaseUnreadable. All
    block; all may be called from several threads.
    """

    def create(self, ordering_id: str, metadata: OrderingMetadata, file: NewFile) -> Ordering:
        """Store revision 1. Raises OrderingExists if the id is taken, also by a deleted one."""
        ...

    def get(self, ordering_id: str, revision: RevisionSelector | None = None) -> Ordering:
        """The newest revision, or the selected one.

        Raises:
            OrderingNotFound, RevisionNotFound: it is not there.
            InvalidName: several revisions match.
        """
        ...

    def is_deleted(self, ordering_id: str) -> bool:
        """True if the id is taken by a deleted ordering."""
        ...

    def list_orderings(self, after: str, limit: int, max_bytes: int) -> Page:
        """The newest revisions of at most `limit` orderings whose id follows `after`, by id.

        A page ends early when its files pass `max_bytes`, but never without one ordering.
        """
        ...

    def list_revisions(self, ordering_id: str, before: int | None, limit: int, max_bytes: int) -> Page:
        """At most `limit` revisions, newest first, with numbers under `before`. Raises OrderingNotFound."""
        ...

    def update(self, ordering_id: str, etag: str, metadata: OrderingMetadata, file: NewFile) -> Ordering:
        """Replace the metadata and, where the bytes differ, add a revision; nothing changed: nothing is written.

        Raises:
            OrderingNotFound: there is none, or it was deleted.
            EtagMismatch: the ordering's etag is not `etag`.
        """
        ...

    def delete(self, ordering_id: str, etag: str | None) -> Ordering:
        """Hide the ordering and keep its rows; returns it as it was. Raises OrderingNotFound and EtagMismatch."""
        ...

    def page_token_key(self) -> bytes:
        """The secret that page tokens are signed with: the same for the life of the database."""
        ...

    def close(self) -> None:
        """Let go of the database."""
        ...
