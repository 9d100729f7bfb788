"""A store in a dictionary: what the contract means, in the fewest lines."""

from __future__ import annotations

import operator
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from ordering_svc.domain.changes import ChangeBatch, ChangeType, OrderingChange
from ordering_svc.domain.filtering import passes
from ordering_svc.domain.naming import RevisionSelector
from ordering_svc.domain.ordering import Ordering, OrderingMetadata, Revision
from ordering_svc.errors import (
    EtagMismatch,
    InvalidName,
    InvalidValue,
    OrderingExists,
    OrderingNotDeleted,
    OrderingNotFound,
    RevisionNotFound,
    TagNotFound,
    TooManyTags,
)
from ordering_svc.persistence.store import MAX_TAGS, PLAIN, ListQuery, NewFile, Page, WriteRequest


@dataclass(slots=True)
class Kept:
    """One ordering and its revisions."""

    metadata: OrderingMetadata
    create_time_us: int
    revisions: list[Revision] = field(default_factory=list)
    tags: dict[str, int] = field(default_factory=dict)
    change_number: int = 1
    delete_time_us: int | None = None


class DictionaryStore:
    """An OrderingStore that forgets everything at its end."""

    def __init__(self) -> None:
        self._kept: dict[str, Kept] = {}
        self._changes: list[OrderingChange] = []
        self._answers: dict[str, tuple[str, Ordering]] = {}
        self._lock = threading.RLock()

    def create(
        self, ordering_id: str, metadata: OrderingMetadata, file: NewFile, request: WriteRequest = PLAIN
    ) -> Ordering:
        def work() -> Ordering:
            if ordering_id in self._kept:
                is_deleted = self._kept[ordering_id].delete_time_us is not None
                raise OrderingExists(ordering_id, is_deleted=is_deleted)
            kept = Kept(metadata, _now())
            kept.revisions.append(_revision(1, file, kept.create_time_us))
            self._kept[ordering_id] = kept
            self._record(ChangeType.CREATED, ordering_id)
            return self._shown(ordering_id)

        return self._write(request, work)

    def get(
        self, ordering_id: str, revision: RevisionSelector | None = None, *, show_deleted: bool = False
    ) -> Ordering:
        with self._lock:
            return self._selected(ordering_id, self._found(ordering_id, show_deleted=show_deleted), revision)

    def list_orderings(self, query: ListQuery, limit: int, max_bytes: int) -> Page:
        with self._lock:
            listed = [
                ordering
                for ordering in map(self._shown, self._kept)
                if (query.show_deleted or ordering.delete_time_us is None)
                and (query.filter is None or passes(ordering, query.filter))
            ]
        listed.sort(key=query.order.key_of, reverse=query.order.is_descending)
        after = query.after
        if after is not None:
            compare = operator.lt if query.order.is_descending else operator.gt
            listed = [ordering for ordering in listed if compare(query.order.key_of(ordering), after)]
        return _page(listed, limit, max_bytes)

    def list_revisions(
        self, ordering_id: str, before: int | None, limit: int, max_bytes: int, *, show_deleted: bool = False
    ) -> Page:
        with self._lock:
            revisions = reversed(self._found(ordering_id, show_deleted=show_deleted).revisions)
            wanted = [made for made in revisions if before is None or made.number < before]
            return _page([self._shown(ordering_id, made) for made in wanted], limit, max_bytes)

    def update(
        self, ordering_id: str, etag: str, metadata: OrderingMetadata, file: NewFile, request: WriteRequest = PLAIN
    ) -> Ordering:
        def work() -> Ordering:
            kept = self._guarded(ordering_id, etag)
            current = self._shown(ordering_id)
            if current.revision.file != file.content:
                kept.revisions.append(_revision(len(kept.revisions) + 1, file, _now()))
            elif metadata == current.metadata:
                return current
            kept.metadata = metadata
            self._changed(ChangeType.UPDATED, ordering_id)
            return self._shown(ordering_id)

        return self._write(request, work)

    def delete(self, ordering_id: str, etag: str | None, request: WriteRequest = PLAIN) -> Ordering:
        def work() -> Ordering:
            kept = self._guarded(ordering_id, etag)
            current = self._shown(ordering_id)
            kept.delete_time_us = _now()
            self._changed(ChangeType.DELETED, ordering_id)
            return current

        return self._write(request, work)

    def undelete(self, ordering_id: str, etag: str | None, request: WriteRequest = PLAIN) -> Ordering:
        def work() -> Ordering:
            self._deleted(ordering_id, etag).delete_time_us = None
            self._changed(ChangeType.UNDELETED, ordering_id)
            return self._shown(ordering_id)

        return self._write(request, work)

    def purge(self, ordering_id: str, etag: str | None, request: WriteRequest = PLAIN) -> Ordering:
        def work() -> Ordering:
            self._deleted(ordering_id, etag)
            current = self._shown(ordering_id)
            self._record(ChangeType.PURGED, ordering_id)
            del self._kept[ordering_id]
            return current

        return self._write(request, work)

    def tag(
        self,
        ordering_id: str,
        etag: str | None,
        tag: str,
        revision: RevisionSelector | None,
        request: WriteRequest = PLAIN,
    ) -> Ordering:
        def work() -> Ordering:
            kept = self._guarded(ordering_id, etag)
            number = self._selected(ordering_id, kept, revision).revision.number
            if kept.tags.get(tag) != number:
                if tag not in kept.tags and len(kept.tags) == MAX_TAGS:
                    raise TooManyTags(ordering_id, MAX_TAGS)
                kept.tags[tag] = number
                self._changed(ChangeType.TAGGED, ordering_id, tag, number)
            return self._shown(ordering_id, kept.revisions[number - 1])

        return self._write(request, work)

    def untag(self, ordering_id: str, etag: str | None, tag: str, request: WriteRequest = PLAIN) -> Ordering:
        def work() -> Ordering:
            kept = self._guarded(ordering_id, etag)
            if tag not in kept.tags:
                raise TagNotFound(ordering_id, tag)
            number = kept.tags.pop(tag)
            self._changed(ChangeType.TAGGED, ordering_id, tag)
            return self._shown(ordering_id, kept.revisions[number - 1])

        return self._write(request, work)

    def remembered(self, request: WriteRequest) -> Ordering | None:
        with self._lock:
            if request.request_id not in self._answers:
                return None
            digest, answer = self._answers[request.request_id]
            if digest != request.digest:
                raise InvalidValue("request_id", "used for another request")
            return answer

    def newest_sequence(self) -> int:
        return len(self._changes)

    def changes_after(self, sequence: int, ordering_ids: Collection[str], limit: int) -> ChangeBatch:
        with self._lock:
            later = [c for c in self._changes[sequence:] if not ordering_ids or c.ordering_id in ordering_ids][:limit]
            end = later[-1].sequence if len(later) == limit else max(sequence, len(self._changes))
            return ChangeBatch(tuple(later), end)

    def page_token_key(self) -> bytes:
        return b"k" * 32

    def close(self) -> None:
        self._kept.clear()

    def _write(self, request: WriteRequest, work: Callable[[], Ordering]) -> Ordering:
        with self._lock:
            answered = self.remembered(request)
            if answered is not None:
                return answered
            before = self._copy() if request.validate_only else None
            answer = work()
            if before is not None:
                self._kept, self._changes = before
            elif request.request_id is not None:
                self._answers[request.request_id] = (request.digest, answer)
            return answer

    def _copy(self) -> tuple[dict[str, Kept], list[OrderingChange]]:
        def copied(kept: Kept) -> Kept:
            tags, revisions = dict(kept.tags), list(kept.revisions)
            return Kept(kept.metadata, kept.create_time_us, revisions, tags, kept.change_number, kept.delete_time_us)

        return {id_: copied(kept) for id_, kept in self._kept.items()}, list(self._changes)

    def _changed(self, type_: ChangeType, ordering_id: str, tag: str = "", tagged: int = 0) -> None:
        self._kept[ordering_id].change_number += 1
        self._record(type_, ordering_id, tag, tagged)

    def _record(self, type_: ChangeType, ordering_id: str, tag: str = "", tagged: int = 0) -> None:
        current = self._shown(ordering_id)
        revision = current.revision
        etag = "" if type_ is ChangeType.PURGED else current.etag
        sequence = len(self._changes) + 1
        self._changes.append(
            OrderingChange(
                sequence, type_, ordering_id, revision.number, revision.revision_id, etag, _now(), tag, tagged
            )
        )

    def _guarded(self, ordering_id: str, etag: str | None) -> Kept:
        kept = self._found(ordering_id)
        self._check(ordering_id, etag)
        return kept

    def _deleted(self, ordering_id: str, etag: str | None) -> Kept:
        kept = self._found(ordering_id, show_deleted=True)
        if kept.delete_time_us is None:
            raise OrderingNotDeleted(ordering_id)
        self._check(ordering_id, etag)
        return kept

    def _check(self, ordering_id: str, etag: str | None) -> None:
        current = self._shown(ordering_id).etag
        if etag is not None and etag != current:
            raise EtagMismatch(ordering_id, etag, current)

    def _found(self, ordering_id: str, *, show_deleted: bool = False) -> Kept:
        kept = self._kept.get(ordering_id)
        if kept is None or (kept.delete_time_us is not None and not show_deleted):
            raise OrderingNotFound(f"no {ordering_id}", f"orderings/{ordering_id}")
        return kept

    def _selected(self, ordering_id: str, kept: Kept, revision: RevisionSelector | None) -> Ordering:
        if revision is None:
            return self._shown(ordering_id)
        number = revision.number
        if (number is None or number > len(kept.revisions)) and revision.tag is not None:
            number = kept.tags.get(revision.tag)
        if number is not None and number <= len(kept.revisions):
            return self._shown(ordering_id, kept.revisions[number - 1])
        prefix = revision.id_prefix
        found = {m.revision_id: m for m in kept.revisions if prefix is not None and m.revision_id.startswith(prefix)}
        if not found:
            raise RevisionNotFound(f"no {revision.text}", f"orderings/{ordering_id}@{revision.text}")
        if len(found) > 1:
            raise InvalidName("name", f"{revision.text} can mean several")
        return self._shown(ordering_id, next(iter(found.values())))

    def _shown(self, ordering_id: str, revision: Revision | None = None) -> Ordering:
        kept = self._kept[ordering_id]
        made = kept.revisions[-1] if revision is None else revision
        tags = tuple(sorted(tag for tag, number in kept.tags.items() if number == made.number))
        return Ordering(
            ordering_id, kept.metadata, kept.change_number, kept.create_time_us, made, tags, kept.delete_time_us
        )


def _now() -> int:
    return time.time_ns() // 1000


def _revision(number: int, file: NewFile, now: int) -> Revision:
    return Revision(number, file.content, now, file.provenance, file.base_model_id)


def _page(orderings: list[Ordering], limit: int, max_bytes: int) -> Page:
    total = 0
    for count, ordering in enumerate(orderings):
        total += len(ordering.revision.file)
        if count == limit or (count and total > max_bytes):
            return Page(orderings[:count], has_more=True)
    return Page(orderings, has_more=False)
