"""The store in SQL: SQLite and PostgreSQL by the same code."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from sqlalchemy import Engine, delete, func, select, update
from sqlalchemy.engine import URL
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from ordering_svc.domain.changes import ChangeBatch, ChangeType
from ordering_svc.domain.naming import RevisionSelector
from ordering_svc.domain.ordering import Ordering, OrderingMetadata
from ordering_svc.errors import DatabaseBusy, OrderingExists, TagNotFound, TooManyTags
from ordering_svc.persistence import changes, listing, requests
from ordering_svc.persistence.changes import NewChange
from ordering_svc.persistence.database import BUSY_TIMEOUT_MS, name_of, open_database, reading, writing
from ordering_svc.persistence.documents import (
    check_etag,
    deleted,
    etag_of,
    found,
    new_revision,
    newest,
    now_us,
    selected,
    shown,
    write_metadata,
)
from ordering_svc.persistence.failures import database_errors
from ordering_svc.persistence.store import MAX_TAGS, PLAIN, ListQuery, NewFile, Page, WriteRequest
from ordering_svc.persistence.tables import OrderingRow, RevisionRow, SecretRow, TagRow

PAGE_TOKEN_KEY = "page_token_key"


@dataclass(frozen=True, slots=True)
class Written:
    """What a write answers, and what it changed; no change: there was nothing to write."""

    answer: Ordering
    change: NewChange | None
    is_purged: bool = False


class SqlStore:
    """An OrderingStore on a SQL database; see there for the contract."""

    def __init__(self, url: URL, *, busy_timeout_ms: int = BUSY_TIMEOUT_MS) -> None:
        """Open the database, migrate it, and check that it can be written.

        Raises:
            DatabaseNotWritable, DatabaseUnreadable, DatabaseBusy, DatabaseFull, DatabaseUnreachable, CannotStart: as
                `open_database` says.
        """
        self._database = name_of(url)
        self._engine = open_database(url, busy_timeout_ms=busy_timeout_ms)
        self._busy_seconds = busy_timeout_ms / 1000
        self._line = threading.Lock() if self._engine.dialect.name == "sqlite" else None
        try:
            self._page_token_key = self._read_key()
        except BaseException:
            self._engine.dispose()
            raise

    @property
    def engine(self) -> Engine:
        """The engine, for tests that look under the store."""
        return self._engine

    def create(
        self, ordering_id: str, metadata: OrderingMetadata, file: NewFile, request: WriteRequest = PLAIN
    ) -> Ordering:
        def work(session: Session) -> Written:
            taken = session.get(OrderingRow, ordering_id)
            if taken is not None:
                raise OrderingExists(ordering_id, is_deleted=taken.delete_time_us is not None)
            now = now_us()
            row = OrderingRow(
                ordering_id=ordering_id, change_number=1, revision_number=1, create_time_us=now, update_time_us=now
            )
            write_metadata(row, metadata)
            session.add(row)
            try:
                session.flush()
            except IntegrityError:  # PostgreSQL only: another server was faster between our look and our write
                raise OrderingExists(ordering_id, is_deleted=False) from None
            revision = new_revision(ordering_id, 1, file, now)
            session.add(revision)
            session.flush()
            return Written(shown(session, row, revision), _change(ChangeType.CREATED, row, revision))

        return self._write(request, work)

    def get(
        self, ordering_id: str, revision: RevisionSelector | None = None, *, show_deleted: bool = False
    ) -> Ordering:
        with self._reading() as session:
            row = found(session, ordering_id, show_deleted=show_deleted)
            return shown(session, row, selected(session, row, revision))

    def list_orderings(self, query: ListQuery, limit: int, max_bytes: int) -> Page:
        with self._reading() as session:
            return listing.list_orderings(session, query, limit, max_bytes)

    def list_revisions(
        self, ordering_id: str, before: int | None, limit: int, max_bytes: int, *, show_deleted: bool = False
    ) -> Page:
        with self._reading() as session:
            return listing.list_revisions(session, ordering_id, before, limit, max_bytes, show_deleted=show_deleted)

    def update(
        self, ordering_id: str, etag: str, metadata: OrderingMetadata, file: NewFile, request: WriteRequest = PLAIN
    ) -> Ordering:
        def work(session: Session) -> Written:
            row = found(session, ordering_id, is_locked=True)
            check_etag(row, etag)
            revision = newest(session, row)
            current = shown(session, row, revision)
            is_new_file = file.content != current.revision.file
            if not is_new_file and metadata == current.metadata:
                return Written(current, None)
            if is_new_file:
                revision = new_revision(ordering_id, row.revision_number + 1, file, now_us())
                session.add(revision)
                row.revision_number += 1
                row.update_time_us = revision.create_time_us
            write_metadata(row, metadata)
            row.change_number += 1
            session.flush()
            return Written(shown(session, row, revision), _change(ChangeType.UPDATED, row, revision))

        return self._write(request, work)

    def delete(self, ordering_id: str, etag: str | None, request: WriteRequest = PLAIN) -> Ordering:
        def work(session: Session) -> Written:
            row = found(session, ordering_id, is_locked=True)
            check_etag(row, etag)
            revision = newest(session, row)
            current = shown(session, row, revision)
            row.delete_time_us = now_us()
            row.change_number += 1
            session.flush()
            return Written(current, _change(ChangeType.DELETED, row, revision))

        return self._write(request, work)

    def undelete(self, ordering_id: str, etag: str | None, request: WriteRequest = PLAIN) -> Ordering:
        def work(session: Session) -> Written:
            row = deleted(session, ordering_id)
            check_etag(row, etag)
            revision = newest(session, row)
            row.delete_time_us = None
            row.change_number += 1
            session.flush()
            return Written(shown(session, row, revision), _change(ChangeType.UNDELETED, row, revision))

        return self._write(request, work)

    def purge(self, ordering_id: str, etag: str | None, request: WriteRequest = PLAIN) -> Ordering:
        def work(session: Session) -> Written:
            row = deleted(session, ordering_id)
            check_etag(row, etag)
            current = shown(session, row, newest(session, row))
            requests.keep_contents(session, ordering_id)
            for table in (TagRow, RevisionRow, OrderingRow):  # who refers goes before what is referred to
                session.execute(
                    delete(table).where(table.ordering_id == ordering_id),
                    execution_options={"synchronize_session": False},
                )
            revision = current.revision
            change = NewChange(ChangeType.PURGED, ordering_id, revision.number, revision.revision_id, etag="")
            return Written(current, change, is_purged=True)

        return self._write(request, work)

    def tag(
        self,
        ordering_id: str,
        etag: str | None,
        tag: str,
        revision: RevisionSelector | None,
        request: WriteRequest = PLAIN,
    ) -> Ordering:
        def work(session: Session) -> Written:
            row = found(session, ordering_id, is_locked=True)
            check_etag(row, etag)
            target = selected(session, row, revision)
            pointing = session.get(TagRow, (ordering_id, tag))
            if pointing is not None and pointing.revision_number == target.revision_number:
                return Written(shown(session, row, target), None)
            if pointing is None:
                count = select(func.count()).select_from(TagRow).where(TagRow.ordering_id == ordering_id)
                if session.execute(count).scalar_one() >= MAX_TAGS:
                    raise TooManyTags(ordering_id, MAX_TAGS)
                session.add(TagRow(ordering_id=ordering_id, tag=tag, revision_number=target.revision_number))
            else:
                pointing.revision_number = target.revision_number
            row.change_number += 1
            session.flush()
            change = _change(ChangeType.TAGGED, row, newest(session, row), tag, target.revision_number)
            return Written(shown(session, row, target), change)

        return self._write(request, work)

    def untag(self, ordering_id: str, etag: str | None, tag: str, request: WriteRequest = PLAIN) -> Ordering:
        def work(session: Session) -> Written:
            row = found(session, ordering_id, is_locked=True)
            check_etag(row, etag)
            pointing = session.get(TagRow, (ordering_id, tag))
            if pointing is None:
                raise TagNotFound(ordering_id, tag)
            target = session.get_one(RevisionRow, (ordering_id, pointing.revision_number))
            session.delete(pointing)
            row.change_number += 1
            session.flush()
            return Written(shown(session, row, target), _change(ChangeType.TAGGED, row, newest(session, row), tag))

        return self._write(request, work)

    def remembered(self, request: WriteRequest) -> Ordering | None:
        if request.request_id is None:
            return None
        with self._reading() as session:
            return requests.recall(session, request)

    def newest_sequence(self) -> int:
        with self._reading() as session:
            return changes.newest_sequence(session)

    def changes_after(self, sequence: int, ordering_ids: Collection[str], limit: int) -> ChangeBatch:
        with self._reading() as session:
            return changes.read_after(session, sequence, ordering_ids, limit)

    def page_token_key(self) -> bytes:
        return self._page_token_key

    def close(self) -> None:
        self._engine.dispose()

    def _read_key(self) -> bytes:
        """The key that the first migration made; written back, to know at start that the database can be written."""
        with self._writing() as session:
            of_key = SecretRow.name == PAGE_TOKEN_KEY
            session.execute(update(SecretRow).where(of_key).values(value=SecretRow.value))
            return session.scalars(select(SecretRow.value).where(of_key)).one()

    def _write(self, request: WriteRequest, work: Callable[[Session], Written]) -> Ordering:
        """One write: answered before, tried only, or done; with its answer and its change in the same transaction."""
        try:
            with self._writing() as session:
                answered = requests.recall(session, request)
                if answered is not None:
                    return answered
                written = work(session)
                if request.validate_only:
                    session.rollback()
                    return written.answer
                requests.remember(session, request, written.answer, is_purged=written.is_purged)
                if written.change is not None:
                    changes.record(session, written.change)
                return written.answer
        except requests.Repeated:
            with self._reading() as session:
                answered = requests.recall(session, request)
            assert answered is not None, "the request was there a moment ago, and stays for a day"
            return answered

    @contextmanager
    def _reading(self) -> Iterator[Session]:
        with database_errors(self._database), Session(reading(self._engine), expire_on_commit=False) as session:
            yield session

    @contextmanager
    def _in_line(self) -> Iterator[None]:
        """SQLite has one writer at a time: who waits for it there sleeps and looks again, who waits here is woken."""
        if self._line is None:
            yield
            return
        if not self._line.acquire(timeout=self._busy_seconds):
            message = f"the database {self._database} has more writers than it keeps up with: try again"
            raise DatabaseBusy(message, database=self._database)
        try:
            yield
        finally:
            self._line.release()

    @contextmanager
    def _writing(self) -> Iterator[Session]:
        """Commits when the block ends, and rolls back when it raises."""
        with (
            self._in_line(),
            database_errors(self._database),
            Session(writing(self._engine), expire_on_commit=False) as session,
            session.begin(),
        ):
            yield session


def _change(
    type_: ChangeType, row: OrderingRow, revision: RevisionRow, tag: str = "", tagged_revision_number: int = 0
) -> NewChange:
    return NewChange(
        type_,
        row.ordering_id,
        row.revision_number,
        revision.revision_id,
        etag_of(row),
        tag,
        tagged_revision_number,
    )
