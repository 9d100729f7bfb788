"""Copies of a database: made while it is written, put back whole, refused where they are not sound."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from sqlalchemy.engine import URL

from ordering_svc.domain.ordering import OrderingMetadata, Provenance
from ordering_svc.errors import CannotStart, DatabaseBusy, DatabaseUnreadable
from ordering_svc.persistence.backup import back_up, restore
from ordering_svc.persistence.examination import examine
from ordering_svc.persistence.sql_store import SqlStore
from ordering_svc.persistence.store import ListQuery, NewFile

FILE = NewFile(b'{"base_model_id": "m"}', Provenance("written"))


@pytest.fixture
def url(tmp_path: Path) -> URL:
    return URL.create("sqlite", database=str(tmp_path / "orderings.sqlite3"))


def ids_in(url: URL) -> list[str]:
    store = SqlStore(url)
    page = store.list_orderings(ListQuery(), 1000, 2**20)
    store.close()
    return [ordering.ordering_id for ordering in page.orderings]


def filled(url: URL, *ids: str) -> None:
    store = SqlStore(url)
    for ordering_id in ids:
        store.create(ordering_id, OrderingMetadata(), FILE)
    store.close()


def test_a_copy_made_while_orderings_are_written_is_one_sound_state(url: URL, tmp_path: Path) -> None:
    store = SqlStore(url)
    has_begun, is_enough = threading.Event(), threading.Event()

    def write() -> None:
        number = 0
        while not is_enough.is_set():
            store.create(f"o{number}", OrderingMetadata(), FILE)
            number += 1
            if number == 20:
                has_begun.set()

    writer = threading.Thread(target=write)
    writer.start()
    has_begun.wait()
    copy = tmp_path / "copy.sqlite3"
    back_up(url, copy)
    is_enough.set()
    writer.join()
    store.close()
    copied = URL.create("sqlite", database=str(copy))
    assert all(finding.is_sound for finding in examine(copied))
    there = ids_in(copied)
    assert len(there) >= 20
    assert sorted(there) == sorted(f"o{number}" for number in range(len(there)))


def test_restoring_brings_the_copy_back_and_keeps_what_was_there(url: URL, tmp_path: Path) -> None:
    filled(url, "a")
    back_up(url, tmp_path / "copy")
    filled(url, "b")
    kept = restore(tmp_path / "copy", url)
    assert ids_in(url) == ["a"]
    assert kept is not None
    assert ids_in(URL.create("sqlite", database=str(kept))) == ["a", "b"]


def test_a_copy_is_restored_where_there_was_nothing(url: URL, tmp_path: Path) -> None:
    filled(url, "a")
    back_up(url, tmp_path / "copy")
    elsewhere = URL.create("sqlite", database=str(tmp_path / "new" / "orderings.sqlite3"))
    assert restore(tmp_path / "copy", elsewhere) is None
    assert ids_in(elsewhere) == ["a"]


def test_a_database_in_use_is_not_restored_over(url: URL, tmp_path: Path) -> None:
    store = SqlStore(url)
    store.create("a", OrderingMetadata(), FILE)
    back_up(url, tmp_path / "copy")
    store.create("b", OrderingMetadata(), FILE)
    with pytest.raises(DatabaseBusy, match="stop the ordering service"):
        restore(tmp_path / "copy", url)
    assert store.get("b").ordering_id == "b"
    store.close()


@pytest.mark.parametrize("content", [b"", b"no database at all" * 400, "half"])
def test_what_is_no_sound_copy_is_refused_and_nothing_changes(url: URL, tmp_path: Path, content: bytes | str) -> None:
    filled(url, "a")
    copy = tmp_path / "copy"
    if isinstance(content, bytes):
        copy.write_bytes(content)
    else:
        back_up(url, copy)
        copy.write_bytes(copy.read_bytes()[: copy.stat().st_size // 2])
    with pytest.raises(DatabaseUnreadable, match="not a sound database"):
        restore(copy, url)
    assert ids_in(url) == ["a"]


def test_an_existing_file_is_replaced_only_when_told(url: URL, tmp_path: Path) -> None:
    filled(url, "a")
    copy = tmp_path / "copy"
    copy.write_text("precious")
    with pytest.raises(CannotStart, match="--force"):
        back_up(url, copy)
    assert copy.read_text() == "precious"
    back_up(url, copy, is_replacing=True)
    assert ids_in(URL.create("sqlite", database=str(copy))) == ["a"]


def test_a_missing_database_and_a_missing_copy_are_named(url: URL, tmp_path: Path) -> None:
    with pytest.raises(CannotStart, match=r"orderings\.sqlite3: there is no such database"):
        back_up(url, tmp_path / "copy")
    with pytest.raises(CannotStart, match="copy: there is no such file"):
        restore(tmp_path / "copy", url)


def test_postgresql_is_left_to_its_own_tools() -> None:
    with pytest.raises(CannotStart, match="pg_dump"):
        back_up(URL.create("postgresql+psycopg", database="x"), Path("copy"))
