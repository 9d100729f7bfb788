"""Databases for tests: a SQLite file, or a schema of its own in the PostgreSQL that a variable names."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.engine import URL

from ordering_svc.persistence.database import parse_database_url

POSTGRESQL_VARIABLE = "LORAMUX_TEST_POSTGRESQL_URL"
DATABASES = ("sqlite", "postgresql")


def sqlite_url(folder: Path) -> URL:
    """A file that is not there yet."""
    return URL.create("sqlite", database=str(folder / "orderings.sqlite3"))


@contextmanager
def postgresql_url() -> Iterator[URL]:
    """An empty schema, dropped at the end; skips the test where there is no PostgreSQL."""
    given = os.environ.get(POSTGRESQL_VARIABLE)
    if not given:
        pytest.skip(f"no PostgreSQL: {POSTGRESQL_VARIABLE} is not set (tests/postgresql.sh starts one)")
    url = parse_database_url(given)
    schema = f"test_{uuid.uuid4().hex}"
    engine = create_engine(url, isolation_level="AUTOCOMMIT")
    try:
        with engine.connect() as connection:
            connection.execute(text(f"CREATE SCHEMA {schema}"))
        yield url.update_query_dict({"options": f"-csearch_path={schema}"})
        with engine.connect() as connection:
            connection.execute(text(f"DROP SCHEMA {schema} CASCADE"))
    finally:
        engine.dispose()


@contextmanager
def database_url(kind: str, folder: Path) -> Iterator[URL]:
    """An empty database of the kind."""
    if kind == "sqlite":
        yield sqlite_url(folder)
    else:
        with postgresql_url() as url:
            yield url
