"""Turns what a database driver raises into errors of ours; the driver's own words go to the log only."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import structlog
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from ordering_svc.errors import (
    DatabaseBusy,
    DatabaseFull,
    DatabaseNotWritable,
    DatabaseUnreachable,
    DatabaseUnreadable,
    OrderingServiceError,
)

# Primary result codes of SQLite, https://www.sqlite.org/rescode.html
_BUSY, _LOCKED, _READONLY, _IOERR, _CORRUPT, _FULL, _CANTOPEN, _NOTADB = 5, 6, 8, 10, 11, 13, 14, 26
_PERM, _AUTH = 3, 23

# SQLSTATE codes and classes of PostgreSQL, https://www.postgresql.org/docs/current/errcodes-appendix.html
_CONNECTION_CLASSES = ("08", "57")
_RETRIABLE_STATES = ("40001", "40P01", "55P03")
_FULL_STATES = ("53100", "53200")
_NOT_WRITABLE_STATES = ("25006", "42501", "28000", "28P01", "3D000")


@contextmanager
def database_errors(database: str) -> Iterator[None]:
    """Within it, database errors become ours; `database` is its name without secrets.

    Raises:
        DatabaseBusy, DatabaseUnreachable, DatabaseFull, DatabaseNotWritable, DatabaseUnreadable: as the
            driver says.
        SQLAlchemyError: anything else, which is a fault of ours.
    """
    try:
        yield
    except PoolTimeout:
        raise DatabaseBusy(
            f"every connection to the database {database} is in use: try again", database=database
        ) from None
    except SQLAlchemyError as error:
        known = _translated(error, database)
        if known is None:
            raise
        structlog.get_logger(__name__).warning("database error", database=database, cause=str(error.__cause__ or error))
        raise known from error


def _translated(error: SQLAlchemyError, database: str) -> OrderingServiceError | None:
    if not isinstance(error, DBAPIError):
        return None
    number = getattr(error.orig, "sqlite_errorcode", None)
    if isinstance(number, int):
        return _of_sqlite(number & 0xFF, database)
    state = getattr(error.orig, "sqlstate", None)
    if isinstance(state, str):
        return _of_postgresql(state, database)
    if error.connection_invalidated or isinstance(error, OperationalError | InterfaceError):
        return DatabaseUnreachable(f"the database {database} does not answer: try again", database=database)
    return None


def _of_sqlite(code: int, database: str) -> OrderingServiceError | None:
    if code in (_BUSY, _LOCKED):
        message = f"the database {database} is locked by another process: try again"
        return DatabaseBusy(message, database=database)
    if code == _FULL:
        return DatabaseFull(
            f"the disk of the database {database} is full: make room, then try again", database=database
        )
    if code in (_READONLY, _PERM, _AUTH):
        message = f"the database {database} is read-only: make the file and its folder writable for the service"
        return DatabaseNotWritable(message, database=database)
    if code in (_CANTOPEN, _IOERR):
        message = f"the database {database} cannot be opened or written: check its folder, its rights and the disk"
        return DatabaseNotWritable(message, database=database)
    if code in (_NOTADB, _CORRUPT):
        message = f"the file {database} is not a database of this service, or is damaged: restore it, or name another"
        return DatabaseUnreadable(message, database=database)
    return None


def _of_postgresql(state: str, database: str) -> OrderingServiceError | None:
    if state in _RETRIABLE_STATES:
        return DatabaseBusy(f"the database {database} is busy: try again", database=database)
    if state.startswith(_CONNECTION_CLASSES):
        return DatabaseUnreachable(f"the database {database} does not answer: try again", database=database)
    if state in _FULL_STATES:
        return DatabaseFull(f"the database {database} is full: make room, then try again", database=database)
    if state in _NOT_WRITABLE_STATES:
        message = f"the database {database} does not let the service write: check its user and its rights"
        return DatabaseNotWritable(message, database=database)
    return None
