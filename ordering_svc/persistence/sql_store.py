"""The store in SQL: SQLite and PostgreSQL by the same code."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Engine, select, update
from sqlalchemy.engine import URL
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from ordering_svc.domain.naming import RevisionSelector, resource_name
from ordering_svc.domain.ordering import AdapterKind, Ordering, OrderingMetadata, Provenance, Revision, revision_id_of
from ordering_svc.errors import EtagMismatch, InvalidName, OrderingExists, OrderingNotFound, RevisionNotFound
from ordering_svc.persistence.database import BUSY_TIMEOUT_MS, name_of, open_database, writing
from ordering_svc.persistence.failures import database_errors
from ordering_svc.persistence.store import NewFile, Page
from ordering_svc.persistence.tables import OrderingRow, RevisionRow, SecretRow

PAGE_TOKEN_KEY = "page_token_key"


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
        try:
            self._page_token_key = self._read_key()
        except BaseException:
            self._engine.dispose()
            raise

    @property
    def engine(self) -> Engine:
        """The engine, for tests that look under the store."""
        return self._engine

    def create(self, ordering_id: str, metadata: OrderingMetadata, file: NewFile) -> Ordering:
        now = _now_us()
        row = OrderingRow(ordering_id=ordering_id, change_number=1, revision_number=1, create_time_us=now)
        _write_metadata(row, metadata)
        revision = _new_revision(ordering_id, 1, file, now)
        with self._writing() as session:
            taken = session.get(OrderingRow, ordering_id)
            if taken is not None:
                raise OrderingExists(ordering_id, is_deleted=taken.delete_time_us is not None)
            session.add(row)
            try:
                session.flush()
            except IntegrityError:  # PostgreSQL only: another server was faster between our look and our write
                raise OrderingExists(ordering_id, is_deleted=False) from None
            session.add(revision)
            session.flush()
            return _ordering(row, revision)

    def get(self, ordering_id: str, revision: RevisionSelector | None = None) -> Ordering:
        with self._reading() as session:
            row = _alive(session, ordering_id)
            return _ordering(row, _selected(session, row, revision))

    def is_deleted(self, ordering_id: str) -> bool:
        with self._reading() as session:
            row = session.get(OrderingRow, ordering_id)
            return row is not None and row.delete_time_us is not None

    def list_orderings(self, after: str, limit: int, max_bytes: int) -> Page:
        query = (
            select(OrderingRow, RevisionRow.num_bytes)
            .join(
                RevisionRow,
                (RevisionRow.ordering_id == OrderingRow.ordering_id)
                & (RevisionRow.revision_number == OrderingRow.revision_number),
            )
            .where(OrderingRow.delete_time_us.is_(None), OrderingRow.ordering_id > after)
            .order_by(OrderingRow.ordering_id)
            .limit(limit + 1)
        )
        with self._reading() as session:
            found = [(row, size) for row, size in session.execute(query)]
            kept = found[: _fitting([size for _, size in found], limit, max_bytes)]
            orderings = [_ordering(row, _selected(session, row, None)) for row, _ in kept]
        return Page(orderings, has_more=len(kept) < len(found))

    def list_revisions(self, ordering_id: str, before: int | None, limit: int, max_bytes: int) -> Page:
        numbers = (
            select(RevisionRow.revision_number, RevisionRow.num_bytes)
            .where(RevisionRow.ordering_id == ordering_id)
            .order_by(RevisionRow.revision_number.desc())
            .limit(limit + 1)
        )
        if before is not None:
            numbers = numbers.where(RevisionRow.revision_number < before)
        with self._reading() as session:
            row = _alive(session, ordering_id)
            found = [(number, size) for number, size in session.execute(numbers)]
            kept = found[: _fitting([size for _, size in found], limit, max_bytes)]
            revisions = [session.get_one(RevisionRow, (ordering_id, number)) for number, _ in kept]
            return Page([_ordering(row, revision) for revision in revisions], has_more=len(kept) < len(found))

    def update(self, ordering_id: str, etag: str, metadata: OrderingMetadata, file: NewFile) -> Ordering:
        with self._writing() as session:
            row = _alive(session, ordering_id, is_locked=True)
            newest = _selected(session, row, None)
            current = _ordering(row, newest)
            if current.etag != etag:
                raise EtagMismatch(ordering_id, etag, current.etag)
            is_new_file = file.content != newest.content
            if not is_new_file and metadata == current.metadata:
                return current
            if is_new_file:
                newest = _new_revision(ordering_id, row.revision_number + 1, file, _now_us())
                session.add(newest)
                row.revision_number += 1
            _write_metadata(row, metadata)
            row.change_number += 1
            session.flush()
            return _ordering(row, newest)

    def delete(self, ordering_id: str, etag: str | None) -> Ordering:
        with self._writing() as session:
            row = _alive(session, ordering_id, is_locked=True)
            current = _ordering(row, _selected(session, row, None))
            if etag is not None and etag != current.etag:
                raise EtagMismatch(ordering_id, etag, current.etag)
            changes = {"delete_time_us": _now_us(), "change_number": row.change_number + 1}
            session.execute(update(OrderingRow).where(OrderingRow.ordering_id == ordering_id).values(changes))
            return current

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

    @contextmanager
    def _reading(self) -> Iterator[Session]:
        with database_errors(self._database), Session(self._engine, expire_on_commit=False) as session:
            yield session

    @contextmanager
    def _writing(self) -> Iterator[Session]:
        """Commits when the block ends, and rolls back when it raises."""
        with (
            database_errors(self._database),
            Session(writing(self._engine), expire_on_commit=False) as session,
            session.begin(),
        ):
            yield session


def _alive(session: Session, ordering_id: str, *, is_locked: bool = False) -> OrderingRow:
    row = session.get(OrderingRow, ordering_id, with_for_update=is_locked or None)
    if row is None:
        raise OrderingNotFound(f"there is no {resource_name(ordering_id)}", resource_name(ordering_id))
    if row.delete_time_us is not None:
        raise OrderingNotFound(f"{resource_name(ordering_id)} was deleted", resource_name(ordering_id))
    return row


def _selected(session: Session, row: OrderingRow, selector: RevisionSelector | None) -> RevisionRow:
    """The newest revision or the selected one; a text that is a number is one first, and the start of an id second."""
    if selector is None:
        return session.get_one(RevisionRow, (row.ordering_id, row.revision_number))
    if selector.number is not None:
        numbered = session.get(RevisionRow, (row.ordering_id, selector.number))
        if numbered is not None:
            return numbered
    name = f"{resource_name(row.ordering_id)}@{selector.text}"
    ids: dict[str, int] = {}
    if selector.id_prefix is not None:
        query = (
            select(RevisionRow.revision_id, RevisionRow.revision_number)
            .where(RevisionRow.ordering_id == row.ordering_id, RevisionRow.revision_id.startswith(selector.id_prefix))
            .order_by(RevisionRow.revision_number)
        )
        ids = {found.revision_id: found.revision_number for found in session.execute(query)}
    if not ids:
        raise RevisionNotFound(f"there is no {name}; the newest revision is {row.revision_number}", name)
    if len(ids) > 1:
        raise InvalidName("name", f"{name} can mean {', '.join(sorted(ids)[:4])}: write more digits")
    return session.get_one(RevisionRow, (row.ordering_id, next(iter(ids.values()))))


def _fitting(sizes: list[int], limit: int, max_bytes: int) -> int:
    """How many of the entries a page takes: at least one, if there is one."""
    total = 0
    for count, size in enumerate(sizes[:limit]):
        total += size
        if count and total > max_bytes:
            return count
    return min(limit, len(sizes))


def _write_metadata(row: OrderingRow, metadata: OrderingMetadata) -> None:
    row.kind = metadata.kind.value
    row.adapter_model_id = metadata.adapter_model_id
    row.description = metadata.description
    row.labels = json.dumps(dict(metadata.labels), sort_keys=True)


def _new_revision(ordering_id: str, number: int, file: NewFile, now_us: int) -> RevisionRow:
    return RevisionRow(
        ordering_id=ordering_id,
        revision_number=number,
        revision_id=revision_id_of(file.content),
        num_bytes=len(file.content),
        content=file.content,
        create_time_us=now_us,
        method=file.provenance.method,
        config_digest=file.provenance.config_digest,
        service_version=file.provenance.service_version,
    )


def _ordering(row: OrderingRow, revision: RevisionRow) -> Ordering:
    metadata = OrderingMetadata(
        AdapterKind(row.kind), row.adapter_model_id, row.description, dict(sorted(json.loads(row.labels).items()))
    )
    provenance = Provenance(revision.method, revision.config_digest, revision.service_version)
    made = Revision(revision.revision_number, bytes(revision.content), revision.create_time_us, provenance)
    return Ordering(row.ordering_id, metadata, row.change_number, row.create_time_us, made)


def _now_us() -> int:
    return time.time_ns() // 1000
