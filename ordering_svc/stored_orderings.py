"""What can be done with orderings that are kept: each use case is one method."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

from ordering_svc.domain.changes import ChangeBatch
from ordering_svc.domain.diff import Difference, differences
from ordering_svc.domain.filter_parser import parse_filter
from ordering_svc.domain.metadata_validation import MetadataChange, check_metadata
from ordering_svc.domain.naming import checked_ordering_id, checked_tag, parse_name, parse_selector, resource_name
from ordering_svc.domain.ordering import Ordering, OrderingDocument, OrderingMetadata, Provenance
from ordering_svc.domain.ordering_json import parse_file, render_file
from ordering_svc.domain.problems import Problem
from ordering_svc.domain.sorting import parse_order_by
from ordering_svc.domain.validation import Expectations, validate_document, validate_parsed
from ordering_svc.errors import (
    EtagMismatch,
    InvalidOrdering,
    InvalidValue,
    OrderingDeleted,
    OrderingExists,
    OrderingServiceError,
    Violation,
)
from ordering_svc.page_tokens import PageTokens
from ordering_svc.persistence.store import PLAIN, ListQuery, NewFile, OrderingStore, Page, WriteRequest

DEFAULT_PAGE_SIZE = 50
MAX_PAGE_SIZE = 1000
MAX_PAGE_BYTES = 3 * 2**20  # of files: a client with gRPC's usual limit of 4 MiB can read every page of small ones
MAX_ATTEMPTS = 100  # of an unguarded change; each failed one means that another change came first

STAYS = MetadataChange()  # nothing is replaced
LIST_SCOPE = "ListOrderings"
REVISIONS_SCOPE = "ListOrderingRevisions"


@dataclass(frozen=True, slots=True)
class ListRequest:
    """Which orderings to list, in which order, and which page of them."""

    page_size: int = 0
    page_token: str = ""
    filter: str = ""
    order_by: str = ""
    show_deleted: bool = False


@dataclass(frozen=True, slots=True)
class ListedPage:
    """One page of a list; the token is empty on the last one."""

    orderings: Sequence[Ordering]
    next_page_token: str


@dataclass(frozen=True, slots=True)
class Destination:
    """Where a document that was made is stored, and what to do if the id is taken."""

    ordering_id: str
    allow_existing: bool = False
    etag: str | None = None
    change: MetadataChange = STAYS


class StoredOrderings:
    """The use cases over a store; blocking, and safe to use from several threads.

    Beside the errors that each method names, all may raise the store's DatabaseBusy, DatabaseNotWritable, DatabaseFull
    and DatabaseUnreadable; and all that write raise InvalidValue for a request id that was used for something else.
    """

    def __init__(self, store: OrderingStore, service_version: str) -> None:
        self._store = store
        self._version = service_version
        self._tokens = PageTokens(store.page_token_key())
        self._listeners: list[Callable[[], None]] = []

    def on_write(self, listener: Callable[[], None]) -> None:
        """Call the listener, on whichever thread, after every write of this process."""
        self._listeners.append(listener)

    def get(self, name: str, *, show_deleted: bool = False) -> Ordering:
        """The newest or the named revision. Raises InvalidName, OrderingNotFound, RevisionNotFound."""
        parsed = parse_name(name, may_have_revision=True)
        return self._store.get(parsed.ordering_id, parsed.revision, show_deleted=show_deleted)

    def list_orderings(self, request: ListRequest) -> ListedPage:
        """A page of the newest revisions. Raises InvalidPageToken, and InvalidValue of the filter or the order."""
        wanted, order = parse_filter(request.filter), parse_order_by(request.order_by)
        arguments = [request.filter, order.field.value, order.is_descending, request.show_deleted]
        scope = f"{LIST_SCOPE}/{hashlib.sha256(json.dumps(arguments).encode()).hexdigest()}"
        after = tuple(json.loads(self._tokens.read(scope, request.page_token))) if request.page_token else None
        query = ListQuery(wanted, order, request.show_deleted, after)
        page = self._store.list_orderings(query, _limit(request.page_size), MAX_PAGE_BYTES)
        return self._listed(page, scope, lambda last: json.dumps(order.key_of(last)))

    def list_revisions(self, name: str, page_size: int, page_token: str, *, show_deleted: bool = False) -> ListedPage:
        """A page of an ordering's revisions, newest first. Raises InvalidName, InvalidPageToken, OrderingNotFound."""
        ordering_id = parse_name(name, may_have_revision=False).ordering_id
        scope = f"{REVISIONS_SCOPE}/{ordering_id}/{'with' if show_deleted else 'without'} deleted"
        before = int(self._tokens.read(scope, page_token)) if page_token else None
        limit = _limit(page_size)
        page = self._store.list_revisions(ordering_id, before, limit, MAX_PAGE_BYTES, show_deleted=show_deleted)
        return self._listed(page, scope, lambda last: str(last.revision.number))

    def create(
        self, ordering_id: str, metadata: OrderingMetadata, document: OrderingDocument, request: WriteRequest = PLAIN
    ) -> Ordering:
        """Store a document as revision 1. Raises InvalidRequest and OrderingExists."""
        checked_ordering_id(ordering_id)
        check_metadata(metadata)
        refuse_errors(validate_document(document, Expectations(metadata.kind)), "ordering.document.")
        file = self._new_file(render_file(document), Provenance("written"), document.base_model_id)
        return self._once(request, lambda: self._store.create(ordering_id, metadata, file, request))

    def update(
        self,
        name: str,
        etag: str | None,
        change: MetadataChange,
        document: OrderingDocument | None,
        request: WriteRequest = PLAIN,
    ) -> Ordering:
        """Replace what is given. Raises InvalidRequest, OrderingNotFound, EtagMismatch."""
        ordering_id = parse_name(name, may_have_revision=False).ordering_id

        def changed(current: Ordering) -> tuple[OrderingMetadata, NewFile]:
            metadata = change.applied_to(current.metadata)
            check_metadata(metadata)
            stored = parse_file(current.revision.file).document
            wanted = stored if document is None else document
            refuse_errors(validate_document(wanted, Expectations(metadata.kind)), "document.")
            # The same content keeps its bytes: a file's own spelling is not lost by writing back what was read.
            content = current.revision.file if wanted == stored else render_file(wanted)
            return metadata, self._new_file(content, Provenance("written"), wanted.base_model_id)

        return self._once(request, lambda: self._change(ordering_id, etag, changed, request))

    def rollback(self, name: str, etag: str | None, revision: str, request: WriteRequest = PLAIN) -> Ordering:
        """Make the file of an earlier revision the newest one; nothing changes if it is already.

        Raises:
            InvalidName, OrderingNotFound, RevisionNotFound, EtagMismatch: of the name, the revision or the etag.
            InvalidOrdering: the file does not fit the kind that the ordering has now.
        """
        ordering_id = parse_name(name, may_have_revision=False).ordering_id
        selector = parse_selector(revision)

        def changed(current: Ordering) -> tuple[OrderingMetadata, NewFile]:
            earlier = self._store.get(ordering_id, selector).revision
            parsed = parse_file(earlier.file)
            refuse_errors(validate_parsed(parsed, Expectations(current.metadata.kind)), "revision.")
            source = f"{resource_name(ordering_id)}@{earlier.number}"
            provenance = Provenance("rolled_back", source=source)
            return current.metadata, self._new_file(earlier.file, provenance, parsed.document.base_model_id)

        return self._once(request, lambda: self._change(ordering_id, etag, changed, request))

    def delete(self, name: str, etag: str | None, request: WriteRequest = PLAIN) -> Ordering:
        """Hide an ordering; returns it as it was. Raises InvalidName, OrderingNotFound, EtagMismatch."""
        ordering_id = parse_name(name, may_have_revision=False).ordering_id
        return self._once(request, lambda: self._store.delete(ordering_id, etag, request))

    def undelete(self, name: str, etag: str | None, request: WriteRequest = PLAIN) -> Ordering:
        """Bring a deleted ordering back. Raises InvalidName, OrderingNotFound, OrderingNotDeleted, EtagMismatch."""
        ordering_id = parse_name(name, may_have_revision=False).ordering_id
        return self._once(request, lambda: self._store.undelete(ordering_id, etag, request))

    def purge(self, name: str, etag: str | None, request: WriteRequest = PLAIN) -> Ordering:
        """Remove a deleted ordering with its history; returns it as it was. Raises as `undelete`."""
        ordering_id = parse_name(name, may_have_revision=False).ordering_id
        return self._once(request, lambda: self._store.purge(ordering_id, etag, request))

    def tag(
        self, name: str, etag: str | None, tag: str, revision: str | None, request: WriteRequest = PLAIN
    ) -> Ordering:
        """Point a tag at the newest or the named revision; returns that one.

        Raises:
            InvalidName, OrderingNotFound, RevisionNotFound: of the name, the tag or the revision.
            EtagMismatch: the etag is stale.
            TooManyTags: the ordering has as many as it may.
        """
        ordering_id = parse_name(name, may_have_revision=False).ordering_id
        checked_tag(tag)
        selector = None if revision is None else parse_selector(revision)
        return self._once(request, lambda: self._store.tag(ordering_id, etag, tag, selector, request))

    def untag(self, name: str, etag: str | None, tag: str, request: WriteRequest = PLAIN) -> Ordering:
        """Take a tag away; returns the revision it pointed at. Raises InvalidName, OrderingNotFound, TagNotFound."""
        ordering_id = parse_name(name, may_have_revision=False).ordering_id
        checked_tag(tag)
        return self._once(request, lambda: self._store.untag(ordering_id, etag, tag, request))

    def import_file(self, destination: Destination, file: bytes, request: WriteRequest = PLAIN) -> Ordering:
        """Store a file unchanged. Raises as `store_made`."""
        return self.store_made(destination, file, Provenance("imported"), request, "json.")

    def store_made(
        self,
        destination: Destination,
        file: bytes,
        provenance: Provenance,
        request: WriteRequest = PLAIN,
        field_prefix: str = "document.",
    ) -> Ordering:
        """Store a file that was made or given, unchanged, as a new ordering or as the next revision.

        The service's version is added to the provenance; `field_prefix` stands before the fields of violations.

        Raises:
            InvalidRequest: the id, the metadata or the file; with one violation for each problem of the file.
            OrderingExists: the id is taken, and `allow_existing` is not set.
            OrderingDeleted: the id is taken by a deleted ordering.
            OrderingNotFound: an etag was given, but there is no such ordering.
            EtagMismatch: the etag is stale.
        """
        ordering_id = checked_ordering_id(destination.ordering_id)
        if destination.etag is not None and not destination.allow_existing:
            raise InvalidValue("etag", "an etag guards an existing ordering: set allow_existing too, or leave it out")
        metadata = destination.change.applied_to(OrderingMetadata())
        check_metadata(metadata)
        parsed = parse_file(file)
        refuse_errors(validate_parsed(parsed, Expectations(metadata.kind)), field_prefix)
        made = self._new_file(file, provenance, parsed.document.base_model_id)

        def changed(current: Ordering) -> tuple[OrderingMetadata, NewFile]:
            merged = destination.change.applied_to(current.metadata)
            refuse_errors(validate_parsed(parsed, Expectations(merged.kind)), field_prefix)
            return merged, made

        def write() -> Ordering:
            if destination.etag is None:
                try:
                    return self._store.create(ordering_id, metadata, made, request)
                except OrderingExists as error:
                    if not destination.allow_existing:
                        raise
                    if error.is_deleted:
                        raise OrderingDeleted(ordering_id) from None
            elif self._store.get(ordering_id, show_deleted=True).delete_time_us is not None:
                raise OrderingDeleted(ordering_id)
            return self._change(ordering_id, destination.etag, changed, request)

        return self._once(request, write)

    def diff(self, before: str, after: str) -> tuple[tuple[Difference, ...], bool]:
        """What differs between two named revisions, and whether their files are the same. Raises as `get`."""
        old, new = self.get(before).revision.file, self.get(after).revision.file
        return differences(parse_file(old).document, parse_file(new).document), old == new

    def remembered(self, request: WriteRequest) -> Ordering | None:
        """What this request was answered with in the last 24 hours, for who would have to work to write it again."""
        return self._store.remembered(request)

    def newest_sequence(self) -> int:
        """The sequence of the newest change; 0 before the first."""
        return self._store.newest_sequence()

    def changes_after(self, sequence: int, ordering_ids: Collection[str], limit: int) -> ChangeBatch:
        """At most `limit` changes after the sequence, of these orderings or, if none are named, of all."""
        return self._store.changes_after(sequence, ordering_ids, limit)

    def _once(self, request: WriteRequest, write: Callable[[], Ordering]) -> Ordering:
        """The answer of a write that happens once for each request id."""
        answered = self._store.remembered(request)
        if answered is not None:
            return answered
        try:
            answer = write()
        except OrderingServiceError:  # perhaps because a twin of this request was faster
            answered = self._store.remembered(request)
            if answered is None:
                raise
            return answered
        for listener in self._listeners:
            listener()
        return answer

    def _change(
        self,
        ordering_id: str,
        etag: str | None,
        change: Callable[[Ordering], tuple[OrderingMetadata, NewFile]],
        request: WriteRequest,
    ) -> Ordering:
        """Compare and set: judged outside the transaction, compared inside; an unguarded change starts over."""
        for attempt in range(1, MAX_ATTEMPTS + 1):
            current = self._store.get(ordering_id)
            if etag is not None and etag != current.etag:
                raise EtagMismatch(ordering_id, etag, current.etag)
            metadata, file = change(current)
            try:
                return self._store.update(ordering_id, current.etag, metadata, file, request)
            except EtagMismatch:
                if etag is not None or attempt == MAX_ATTEMPTS:
                    raise
        raise AssertionError("unreachable: the last attempt returns or raises")

    def _new_file(self, content: bytes, provenance: Provenance, base_model_id: str | None) -> NewFile:
        said = (base_model_id or "").replace("\0", "�").encode("utf-8", "replace").decode()  # what a database can keep
        return NewFile(content, replace(provenance, service_version=self._version), said)

    def _listed(self, page: Page, scope: str, position: Callable[[Ordering], str]) -> ListedPage:
        token = self._tokens.sign(scope, position(page.orderings[-1])) if page.has_more else ""
        return ListedPage(page.orderings, token)


def _limit(page_size: int) -> int:
    return min(page_size or DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE)


def refuse_errors(problems: Sequence[Problem], prefix: str) -> None:
    """Raises InvalidOrdering if any problem is an error; warnings do not stop anyone."""
    errors = [Violation(_field(prefix, p.field), f"{p.message} {p.hint}", p.code) for p in problems if p.is_error]
    if errors:
        raise InvalidOrdering(errors)


def _field(prefix: str, field: str) -> str:
    return f"{prefix}{field}" if field and not field.startswith("[") else f"{prefix.rstrip('.')}{field}"
