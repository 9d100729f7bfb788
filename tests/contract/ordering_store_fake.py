"""A store in a dictionary: what the contract means, in the fewest lines."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field

from ordering_svc.domain.naming import RevisionSelector
from ordering_svc.domain.ordering import Ordering, OrderingMetadata, Revision
from ordering_svc.errors import EtagMismatch, InvalidName, OrderingExists, OrderingNotFound, RevisionNotFound
from ordering_svc.persistence.store import NewFile, Page


@dataclass(slots=True)
class Kept:
    """One ordering and its revisions."""

    metadata: OrderingMetadata
    create_time_us: int
    revisions: list[Revision] = field(default_factory=list)
    change_number: int = 1
    is_deleted: bool = False


class DictionaryStore:
    """An OrderingStore that forgets everything at its end."""

    def __init__(self) -> None:
        self._kept: dict[str, Kept] = {}
        self._lock = threading.Lock()

    def create(self, ordering_id: str, metadata: OrderingMetadata, file: NewFile) -> Ordering:
        with self._lock:
            if ordering_id in self._kept:
                raise OrderingExists(ordering_id, is_deleted=self._kept[ordering_id].is_deleted)
            now = time.time_ns() // 1000
            self._kept[ordering_id] = Kept(metadata, now, [Revision(1, file.content, now, file.provenance)])
            return self._shown(ordering_id)

    def get(self, ordering_id: str, revision: RevisionSelector | None = None) -> Ordering:
        with self._lock:
            revisions = self._alive(ordering_id).revisions
            if revision is None:
                return self._shown(ordering_id)
            if revision.number is not None and revision.number <= len(revisions):
                return self._shown(ordering_id, revisions[revision.number - 1])
            found = {
                made.revision_id: made
                for made in revisions
                if revision.id_prefix is not None and made.revision_id.startswith(revision.id_prefix)
            }
            if not found:
                raise RevisionNotFound(f"no {revision.text}", f"orderings/{ordering_id}@{revision.text}")
            if len(found) > 1:
                raise InvalidName("name", f"{revision.text} can mean several")
            return self._shown(ordering_id, next(iter(found.values())))

    def is_deleted(self, ordering_id: str) -> bool:
        return ordering_id in self._kept and self._kept[ordering_id].is_deleted

    def list_orderings(self, after: str, limit: int, max_bytes: int) -> Page:
        with self._lock:
            ids = sorted(id_ for id_, kept in self._kept.items() if not kept.is_deleted and id_ > after)
            return _page([self._shown(id_) for id_ in ids], limit, max_bytes)

    def list_revisions(self, ordering_id: str, before: int | None, limit: int, max_bytes: int) -> Page:
        with self._lock:
            revisions = reversed(self._alive(ordering_id).revisions)
            wanted = [made for made in revisions if before is None or made.number < before]
            return _page([self._shown(ordering_id, made) for made in wanted], limit, max_bytes)

    def update(self, ordering_id: str, etag: str, metadata: OrderingMetadata, file: NewFile) -> Ordering:
        with self._lock:
            kept = self._alive(ordering_id)
            current = self._shown(ordering_id)
            if current.etag != etag:
                raise EtagMismatch(ordering_id, etag, current.etag)
            if current.revision.file != file.content:
                now = time.time_ns() // 1000
                kept.revisions.append(Revision(len(kept.revisions) + 1, file.content, now, file.provenance))
            elif metadata == current.metadata:
                return current
            kept.metadata = metadata
            kept.change_number += 1
            return self._shown(ordering_id)

    def delete(self, ordering_id: str, etag: str | None) -> Ordering:
        with self._lock:
            kept = self._alive(ordering_id)
            current = self._shown(ordering_id)
            if etag is not None and current.etag != etag:
                raise EtagMismatch(ordering_id, etag, current.etag)
            kept.is_deleted = True
            return current

    def page_token_key(self) -> bytes:
        return b"k" * 32

    def close(self) -> None:
        self._kept.clear()

    def _alive(self, ordering_id: str) -> Kept:
        kept = self._kept.get(ordering_id)
        if kept is None or kept.is_deleted:
            raise OrderingNotFound(f"no {ordering_id}", f"orderings/{ordering_id}")
        return kept

    def _shown(self, ordering_id: str, revision: Revision | None = None) -> Ordering:
        kept = self._kept[ordering_id]
        made = kept.revisions[-1] if revision is None else revision
        return Ordering(ordering_id, kept.metadata, kept.change_number, kept.create_time_us, made)


def _page(orderings: list[Ordering], limit: int, max_bytes: int) -> Page:
    total = 0
    for count, ordering in enumerate(orderings):
        total += len(ordering.revision.file)
        if count == limit or (count and total > max_bytes):
            return Page(orderings[:count], has_more=True)
    return Page(orderings, has_more=False)
