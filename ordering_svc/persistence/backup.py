"""Copies of a SQLite database: made while it is in use, and put back while it is not.

Both ways go through SQLite's own backup interface (https://www.sqlite.org/backup.html), which sees one state of the
database, its write-ahead log included; copying the file would not. PostgreSQL has pg_dump and pg_restore.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, cast

from sqlalchemy.engine import URL

from ordering_svc.errors import CannotStart, DatabaseBusy, DatabaseUnreadable
from ordering_svc.persistence.database import name_of, sqlite_module

BUSY_SECONDS = 5.0


def back_up(database: URL, copy: Path, *, is_replacing: bool = False) -> int:
    """Write a copy of the database as it is at this moment; returns its bytes. Servers go on meanwhile.

    The copy appears whole or not at all.

    Raises:
        CannotStart: it is no SQLite database, it is not there, or the copy exists or cannot be written.
        DatabaseUnreadable: the database is damaged, or not one of ours.
    """
    source = _existing_file(database)
    if copy.exists() and not is_replacing:
        raise CannotStart(f"{copy} exists: name another file, or say --force to replace it")
    beside = copy.with_name(f".{copy.name}.{os.getpid()}")
    try:
        with _opened(source, is_read_only=True) as whole, _opened(beside) as part:
            whole.backup(part)
            part.execute("PRAGMA journal_mode=DELETE")  # one file, without a log beside it
        _check(beside, f"the copy of {source}")
        _flush(beside)
        beside.replace(copy)
        _flush(copy.parent)
    except OSError as error:
        raise CannotStart(f"{copy} cannot be written: {error.strerror or error}") from None
    finally:
        beside.unlink(missing_ok=True)
    return copy.stat().st_size


def restore(copy: Path, database: URL) -> Path | None:
    """Put a copy in the place of the database; returns where the one before was kept, if there was one.

    Raises:
        CannotStart: it is no SQLite database, or a file cannot be written.
        DatabaseUnreadable: the copy is damaged, or not one of ours; nothing is changed.
        DatabaseBusy: a server has the database open; nothing is changed.
    """
    target = _file_of(database)
    if not copy.is_file():
        raise CannotStart(f"{copy}: there is no such file")
    _check(copy, str(copy))
    kept = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists():
            kept = target.with_name(f"{target.name}.before-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}")
            back_up(database, kept)
            _refuse_if_open(target)
        with _opened(copy, is_read_only=True) as whole, _opened(target) as part:
            whole.backup(part)  # one transaction: killed half way, the database is as it was
    except OSError as error:
        raise CannotStart(f"{target} cannot be written: {error.strerror or error}") from None
    return kept


def _refuse_if_open(target: Path) -> None:
    """SQLite leaves the write-ahead log only when no other connection is open, which is what we want to know."""
    with _opened(target) as connection:
        try:
            connection.execute("PRAGMA journal_mode=DELETE")
            connection.execute("BEGIN EXCLUSIVE")
            connection.execute("ROLLBACK")
        except _errors() as error:
            message = f"the database {target} is in use: stop the ordering service, then restore"
            raise DatabaseBusy(message, database=str(target)) from error


def _check(file: Path, called: str) -> None:
    """Refuse what SQLite finds damaged, or what is not a database of this service."""
    try:
        with _opened(file, is_read_only=True) as connection:
            (verdict,) = connection.execute("PRAGMA integrity_check(1)").fetchone()
            tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    except _errors() as error:
        verdict, tables = str(error), set()
    if verdict != "ok" or not {"orderings", "ordering_revisions", "alembic_version"} <= tables:
        found = f"SQLite says: {verdict}" if verdict != "ok" else "it lacks our tables"
        raise DatabaseUnreadable(f"{called} is not a sound database of this service: {found}", database=str(file))


@contextmanager
def _opened(file: Path, *, is_read_only: bool = False) -> Iterator[Any]:
    """A connection of the safer driver."""
    mode = "ro" if is_read_only else "rwc"
    uri = f"{file.absolute().as_uri()}?mode={mode}"
    try:
        connection = _driver().connect(uri, uri=True, timeout=BUSY_SECONDS, isolation_level=None)
    except _errors() as error:
        raise CannotStart(f"{file} cannot be opened: {error}") from None
    with closing(connection):
        yield connection


def _driver() -> Any:
    return cast(Any, sqlite_module())


def _errors() -> type[Exception]:
    errors: type[Exception] = _driver().Error
    return errors


def _existing_file(database: URL) -> Path:
    file = _file_of(database)
    if not file.is_file():
        raise CannotStart(f"{file}: there is no such database")
    return file


def _file_of(database: URL) -> Path:
    if database.get_backend_name() != "sqlite":
        message = f"{name_of(database)} is a PostgreSQL database: back it up with pg_dump, restore it with pg_restore"
        raise CannotStart(message)
    return Path(str(database.database))


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
