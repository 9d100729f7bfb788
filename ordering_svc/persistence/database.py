"""Opens the database: safe settings for SQLite, migrations, and a check that it can be written."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, cast

import structlog
from alembic import command
from alembic.config import Config as AlembicConfig
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util.exc import CommandError
from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from ordering_svc.errors import CannotStart, DatabaseUnreadable
from ordering_svc.persistence.failures import database_errors

MIGRATIONS = Path(__file__).parent / "migrations"
BUSY_TIMEOUT_MS = 5000
POOL_SIZE = 16
JOURNAL_LIMIT_BYTES = 64 * 2**20
MIGRATION_LOCK = 0x10A4  # any number that all servers on one PostgreSQL agree on

# WAL can lose commits before 3.51.3, but for these backports: https://www.sqlite.org/wal.html#walresetbug
FIXED_SINCE = (3, 51, 3)
BACKPORTS = ((3, 44, 6), (3, 50, 7))


class SqliteModule(Protocol):
    """The part of a SQLite driver that decides about the journal."""

    @property
    def sqlite_version_info(self) -> tuple[int, int, int]:
        """Version of the SQLite library inside."""
        ...


def sqlite_module() -> SqliteModule:
    """The driver with the newer SQLite: the one installed beside us, else Python's own."""
    try:
        import pysqlite3
    except ImportError:
        return cast(SqliteModule, sqlite3)
    return cast(SqliteModule, pysqlite3)


def is_wal_safe(version: tuple[int, int, int]) -> bool:
    """This SQLite does not have the WAL-reset bug."""
    return version >= FIXED_SINCE or any(version[:2] == fix[:2] and version >= fix for fix in BACKPORTS)


def parse_database_url(text: str) -> URL:
    """The URL, with our driver for PostgreSQL.

    Raises:
        CannotStart: it is not the URL of a SQLite file or of a PostgreSQL database.
    """
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        raise CannotStart("the database URL cannot be read: write sqlite:///PATH or postgresql://...") from None
    if url.get_backend_name() == "sqlite":
        if not url.database or ":memory:" in url.database or "mode=memory" in text:
            raise CannotStart("a SQLite database in memory would be lost: write sqlite:///PATH")
        return url
    if url.get_backend_name() == "postgresql":
        return url.set(drivername="postgresql+psycopg")
    raise CannotStart(f"{url.drivername} is no database we know: write sqlite:///PATH or postgresql://...")


def name_of(url: URL) -> str:
    """What messages call the database: the file, or the URL without its password."""
    return str(url.database) if url.get_backend_name() == "sqlite" else url.render_as_string(hide_password=True)


def open_database(url: URL, *, busy_timeout_ms: int = BUSY_TIMEOUT_MS, module: SqliteModule | None = None) -> Engine:
    """An engine on a database that has been migrated and can be written.

    Raises:
        DatabaseNotWritable, DatabaseUnreadable, DatabaseBusy, DatabaseFull, DatabaseUnreachable: it cannot be used.
        CannotStart: the driver for it is not installed.
    """
    engine = connected(url, busy_timeout_ms=busy_timeout_ms, module=module)
    try:
        with database_errors(name_of(url)):
            _migrate(engine, name_of(url))
    except BaseException:
        engine.dispose()
        raise
    return engine


def writing(engine: Engine) -> Engine:
    """The same engine, taking the write lock at once: SQLite does not wait when a reader turns writer."""
    return engine.execution_options(is_writer=True)


def reading(engine: Engine) -> Engine:
    """The same engine, seeing one state of the database for the whole of a transaction, as SQLite always does."""
    if engine.dialect.name == "sqlite":
        return engine
    return engine.execution_options(isolation_level="REPEATABLE READ")


def connected(url: URL, *, busy_timeout_ms: int = BUSY_TIMEOUT_MS, module: SqliteModule | None = None) -> Engine:
    """An engine on a database as it is, with our settings. Raises CannotStart if its driver is not installed."""
    module = module or sqlite_module()
    if url.get_backend_name() != "sqlite":
        try:
            return create_engine(url, pool_size=POOL_SIZE, max_overflow=0, pool_pre_ping=True)
        except ModuleNotFoundError:
            raise CannotStart("PostgreSQL needs its driver: install loramux[ordering,postgresql]") from None
    engine = create_engine(url, module=module, pool_size=POOL_SIZE, max_overflow=0)
    event.listen(engine, "connect", _settings(busy_timeout_ms, _journal_mode(module)))
    event.listen(engine, "begin", _begin)
    return engine


def _journal_mode(module: SqliteModule) -> str:
    if is_wal_safe(module.sqlite_version_info):
        return "WAL"
    structlog.get_logger(__name__).warning(
        "this SQLite can lose commits in WAL mode, so the slower rollback journal is used: install pysqlite3",
        sqlite_version=".".join(map(str, module.sqlite_version_info)),
    )
    return "TRUNCATE"


def _settings(busy_timeout_ms: int, journal_mode: str) -> Callable[[Any, object], None]:
    def set_up(connection: Any, record: object) -> None:  # noqa: ARG001 - the event's signature
        connection.isolation_level = None  # we say BEGIN ourselves
        for pragma in (
            f"busy_timeout={busy_timeout_ms}",  # first: the journal mode may have to wait
            f"journal_mode={journal_mode}",
            "synchronous=FULL",
            "foreign_keys=ON",
            "trusted_schema=OFF",
            f"journal_size_limit={JOURNAL_LIMIT_BYTES}",
        ):
            connection.execute(f"PRAGMA {pragma}")

    return set_up


def _begin(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE" if connection.get_execution_options().get("is_writer") else "BEGIN")


def schema_steps(engine: Engine) -> tuple[str, str]:
    """The migration step that the database is at (empty: none), and the newest that this version knows."""
    with engine.connect() as connection:
        current = MigrationContext.configure(connection).get_current_revision() or ""
    return current, ScriptDirectory.from_config(_migrations()).get_current_head() or ""


def _migrations() -> AlembicConfig:
    config = AlembicConfig()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    return config


def _migrate(engine: Engine, database: str) -> None:
    """Bring the schema up to date; one server at a time, the others wait for the lock."""
    config = _migrations()
    with writing(engine).begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": MIGRATION_LOCK})
        config.attributes["connection"] = connection
        try:
            command.upgrade(config, "head")
        except CommandError as error:  # for instance a step that only a newer version knows
            message = f"the database {database} was made by another version of the service: {error}"
            raise DatabaseUnreadable(message, database=database) from None
