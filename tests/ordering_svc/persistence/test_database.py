"""The settings of SQLite, and what happens when its file cannot be used."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, text
from sqlalchemy.engine import URL

from ordering_svc.domain.ordering import OrderingMetadata, Provenance
from ordering_svc.errors import (
    CannotStart,
    DatabaseBusy,
    DatabaseFull,
    DatabaseNotWritable,
    DatabaseUnreadable,
    OrderingNotFound,
)
from ordering_svc.persistence.database import is_wal_safe, open_database, parse_database_url, sqlite_module
from ordering_svc.persistence.sql_store import SqlStore
from ordering_svc.persistence.store import ListQuery, NewFile, WriteRequest

FILE = NewFile(b"x", Provenance("written"))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "orderings.sqlite3"


def url_of(path: Path) -> URL:
    return URL.create("sqlite", database=str(path))


@pytest.mark.parametrize(
    ("version", "is_safe"),
    [
        ((3, 40, 1), False),
        ((3, 44, 5), False),
        ((3, 44, 6), True),
        ((3, 45, 9), False),
        ((3, 50, 7), True),
        ((3, 51, 2), False),
        ((3, 51, 3), True),
        ((3, 53, 4), True),
    ],
)
def test_wal_is_used_only_where_it_keeps_commits(version: tuple[int, int, int], is_safe: bool) -> None:
    assert is_wal_safe(version) is is_safe


def settings(engine: Any) -> list[object]:
    with engine.connect() as connection:
        names = ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        return [connection.execute(text(f"PRAGMA {name}")).scalar() for name in names]


def test_the_settings_are_the_safe_ones(path: Path) -> None:
    store = SqlStore(url_of(path), busy_timeout_ms=1234)
    assert settings(store.engine) == ["wal", 2, 1, 1234]
    store.close()


def test_an_old_sqlite_gets_the_rollback_journal(path: Path) -> None:
    if is_wal_safe(sqlite3.sqlite_version_info):
        pytest.skip("Python's own SQLite is new")
    engine = open_database(url_of(path), module=sqlite3)
    assert settings(engine) == ["truncate", 2, 1, 5000]
    engine.dispose()


def test_a_locked_file_is_busy_and_recovers(path: Path) -> None:
    store = SqlStore(url_of(path), busy_timeout_ms=20)
    driver: Any = sqlite_module()  # not another copy of SQLite: locks of one process do not hold between two copies
    blocker = driver.connect(path, isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    with pytest.raises(DatabaseBusy, match=r"orderings\.sqlite3"):
        store.create("a", OrderingMetadata(), FILE)
    blocker.close()
    assert store.create("a", OrderingMetadata(), FILE).revision.number == 1
    store.close()


def test_a_full_disk_is_typed_and_leaves_nothing_half_written(path: Path) -> None:
    store = SqlStore(url_of(path))
    event.listen(store.engine, "begin", lambda connection: connection.exec_driver_sql("PRAGMA max_page_count=20"))
    with pytest.raises(DatabaseFull, match=r"orderings\.sqlite3"):
        store.create("big", OrderingMetadata(), NewFile(b"x" * 2**20, FILE.provenance))
    with pytest.raises(OrderingNotFound):
        store.get("big")
    assert store.create("small", OrderingMetadata(), FILE).revision.number == 1
    store.close()


FILL = """
import resource, signal, sys
from sqlalchemy.engine import URL
from ordering_svc.domain.ordering import OrderingMetadata, Provenance
from ordering_svc.errors import OrderingServiceError
from ordering_svc.persistence.sql_store import SqlStore
from ordering_svc.persistence.store import ListQuery, NewFile, WriteRequest

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write beyond the limit fails, as on a full disk
store = SqlStore(URL.create("sqlite", database=sys.argv[1]))
resource.setrlimit(resource.RLIMIT_FSIZE, (600_000, resource.RLIM_INFINITY))
file = NewFile(bytes(20_000), Provenance("written"))
for number in range(1000):
    try:
        store.create(f"o{number}", OrderingMetadata(), file)
    except OrderingServiceError as error:
        print(number, type(error).__name__)
        break
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
store.create("after", OrderingMetadata(), file)
store.close()
"""


def test_a_file_that_cannot_grow_loses_nothing_that_was_acknowledged(path: Path) -> None:
    ended = subprocess.run([sys.executable, "-c", FILL, str(path)], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stderr
    written, error = ended.stdout.splitlines()[-1].split()  # after what the log says
    assert int(written) > 5
    assert error in ("DatabaseFull", "DatabaseNotWritable")
    store = SqlStore(url_of(path))
    listed = store.list_orderings(ListQuery(), 1000, 10**9).orderings
    assert {o.ordering_id for o in listed} == {"after", *(f"o{number}" for number in range(int(written)))}
    assert [c.sequence for c in store.changes_after(0, (), 1000).changes] == list(range(1, int(written) + 2))
    with store.engine.connect() as connection:
        assert connection.execute(text("PRAGMA integrity_check")).scalar() == "ok"
    store.close()


def test_a_database_that_becomes_read_only_still_answers_readers(path: Path) -> None:
    store = SqlStore(url_of(path))
    made = store.create("a", OrderingMetadata(), FILE)
    states = ["ON"]
    event.listen(store.engine, "checkout", lambda driver, *_: driver.execute(f"PRAGMA query_only={states[-1]}"))
    with pytest.raises(DatabaseNotWritable):
        store.delete("a", None)
    assert store.get("a") == made
    states.append("OFF")
    assert store.delete("a", made.etag) == made
    store.close()


def test_a_locked_file_keeps_no_request_id_and_no_number(path: Path) -> None:
    store = SqlStore(url_of(path), busy_timeout_ms=20)
    driver: Any = sqlite_module()
    how = WriteRequest("00000000-0000-4000-8000-000000000000", "d")
    blocker = driver.connect(path, isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    for _ in range(3):
        with pytest.raises(DatabaseBusy):
            store.create("a", OrderingMetadata(), FILE, how)
    assert (store.remembered(how), store.newest_sequence()) == (None, 0)
    blocker.close()
    made = store.create("a", OrderingMetadata(), FILE, how)
    assert (store.remembered(how), store.newest_sequence()) == (made, 1)
    store.close()


def test_a_read_only_database_is_refused_at_start(path: Path) -> None:
    SqlStore(url_of(path)).close()
    with pytest.raises(DatabaseNotWritable, match=r"orderings\.sqlite3"):
        SqlStore(parse_database_url(f"sqlite:///file:{path}?mode=ro&uri=true"))


@pytest.mark.parametrize("content", [b"this is no database, but long enough to be one" * 100])
def test_a_file_that_is_no_database_is_refused(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(DatabaseUnreadable, match=r"orderings\.sqlite3"):
        SqlStore(url_of(path))
    assert path.read_bytes() == content


def test_a_database_of_a_newer_service_is_refused(path: Path) -> None:
    SqlStore(url_of(path)).close()
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    with pytest.raises(DatabaseUnreadable, match="another version"):
        SqlStore(url_of(path))


def test_a_folder_in_the_files_place_is_refused(path: Path) -> None:
    path.mkdir()
    with pytest.raises(DatabaseNotWritable):
        SqlStore(url_of(path))


@pytest.mark.parametrize("text_", ["sqlite://", "sqlite:///:memory:", "mysql://x/y", "nonsense", ""])
def test_a_url_that_keeps_nothing_is_refused(text_: str) -> None:
    with pytest.raises(CannotStart):
        parse_database_url(text_)


def test_postgresql_gets_its_driver() -> None:
    assert parse_database_url("postgresql://u@h/d").drivername == "postgresql+psycopg"
