"""What the use cases need of a store; SQL and the tests' dictionary keep to the same contract suite."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

from ordering_svc.domain.changes import ChangeBatch
from ordering_svc.domain.filtering import Filter
from ordering_svc.domain.naming import RevisionSelector
from ordering_svc.domain.ordering import Ordering, OrderingMetadata, Provenance
from ordering_svc.domain.sorting import BY_ID, SortOrder

MAX_TAGS = 64
REQUEST_LIFETIME_US = 24 * 3600 * 10**6


@dataclass(frozen=True, slots=True)
class NewFile:
    """The file of a revision that is to be, and how it was made."""

    content: bytes
    provenance: Provenance
    base_model_id: str = ""  # what the document says, for filters


@dataclass(frozen=True, slots=True)
class WriteRequest:
    """How a write was asked for: to happen once however often it is sent, or not at all."""

    request_id: str | None = None
    digest: str = ""  # of the method and all that it was asked for: the same id with another digest is refused
    validate_only: bool = False


PLAIN = WriteRequest()


@dataclass(frozen=True, slots=True)
class ListQuery:
    """Which orderings a list has, in which order, and where its next page starts."""

    filter: Filter | None = None
    order: SortOrder = BY_ID
    show_deleted: bool = False
    after: tuple[str | int, ...] | None = None  # the sort key of the last ordering before the page


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

    Every write takes a WriteRequest. If its id was answered in the last 24 hours, the write returns that answer and
    changes nothing; with another digest it raises InvalidValue. With `validate_only` it answers or raises as it would,
    and writes nothing. Every change gets a new etag, and the next sequence number in the row of all changes.
    """

    def create(
        self, ordering_id: str, metadata: OrderingMetadata, file: NewFile, request: WriteRequest = PLAIN
    ) -> Ordering:
        """Store revision 1. Raises OrderingExists if the id is taken, also by a deleted one."""
        ...

    def get(
        self, ordering_id: str, revision: RevisionSelector | None = None, *, show_deleted: bool = False
    ) -> Ordering:
        """The newest revision, or the selected one.

        Raises:
            OrderingNotFound, RevisionNotFound: it is not there, or was deleted and `show_deleted` is not set.
            InvalidName: several revisions match.
        """
        ...

    def list_orderings(self, query: ListQuery, limit: int, max_bytes: int) -> Page:
        """The newest revisions of at most `limit` orderings.

        A page ends early when its files pass `max_bytes`, but never without one ordering.
        """
        ...

    def list_revisions(
        self, ordering_id: str, before: int | None, limit: int, max_bytes: int, *, show_deleted: bool = False
    ) -> Page:
        """At most `limit` revisions, newest first, with numbers under `before`. Raises OrderingNotFound."""
        ...

    def update(
        self, ordering_id: str, etag: str, metadata: OrderingMetadata, file: NewFile, request: WriteRequest = PLAIN
    ) -> Ordering:
        """Replace the metadata and, where the bytes differ, add a revision; nothing changed: nothing is written.

        Raises:
            OrderingNotFound: there is none, or it was deleted.
            EtagMismatch: the ordering's etag is not `etag`.
        """
        ...

    def delete(self, ordering_id: str, etag: str | None, request: WriteRequest = PLAIN) -> Ordering:
        """Hide the ordering and keep its rows; returns it as it was. Raises OrderingNotFound and EtagMismatch."""
        ...

    def undelete(self, ordering_id: str, etag: str | None, request: WriteRequest = PLAIN) -> Ordering:
        """Bring a deleted ordering back. Raises OrderingNotFound, OrderingNotDeleted and EtagMismatch."""
        ...

    def purge(self, ordering_id: str, etag: str | None, request: WriteRequest = PLAIN) -> Ordering:
        """Remove a deleted ordering with its revisions and tags; returns it as it was, newest revision.

        Changes stay, and so do the answers of requests. Raises as `undelete`.
        """
        ...

    def tag(
        self,
        ordering_id: str,
        etag: str | None,
        tag: str,
        revision: RevisionSelector | None,
        request: WriteRequest = PLAIN,
    ) -> Ordering:
        """Point the tag at the newest or the selected revision; returns that one. No change if it did already.

        Raises:
            OrderingNotFound, RevisionNotFound, InvalidName, EtagMismatch: as `get` and `update`.
            TooManyTags: it would be one more than MAX_TAGS.
        """
        ...

    def untag(self, ordering_id: str, etag: str | None, tag: str, request: WriteRequest = PLAIN) -> Ordering:
        """Take the tag away; returns the revision that it pointed at.

        Raises OrderingNotFound, TagNotFound and EtagMismatch.
        """
        ...

    def remembered(self, request: WriteRequest) -> Ordering | None:
        """The answer that was given to this request id in the last 24 hours. Raises InvalidValue for another digest."""
        ...

    def newest_sequence(self) -> int:
        """The sequence of the newest change; 0 before the first."""
        ...

    def changes_after(self, sequence: int, ordering_ids: Collection[str], limit: int) -> ChangeBatch:
        """At most `limit` changes after `sequence`, of these orderings or, if none are named, of all."""
        ...

    def page_token_key(self) -> bytes:
        """The secret that page tokens are signed with: the same for the life of the database."""
        ...

    def close(self) -> None:
        """Let go of the database."""
        ...
