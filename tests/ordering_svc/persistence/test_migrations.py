"""The schema's steps, up and down, on a database with data, on both kinds of database."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.engine import URL
from sqlalchemy.exc import IntegrityError

from ordering_svc.domain.changes import ChangeType
from ordering_svc.domain.filter_parser import parse_filter
from ordering_svc.domain.naming import RevisionSelector
from ordering_svc.domain.ordering import Provenance
from ordering_svc.persistence.database import MIGRATIONS
from ordering_svc.persistence.sql_store import SqlStore
from ordering_svc.persistence.store import ListQuery
from ordering_svc.persistence.tables import Tables
from tests.databases import DATABASES, database_url

FILES = {
    ("a", 1): b'{"base_model_id": "org/old"}',
    ("a", 2): b'{"base_model_id": "org/new\\u0000", "order": ["x"]}',
    ("gone", 1): b'{"order": []}',
    ("odd", 1): b"\xff no JSON at all",
}


@pytest.fixture(params=DATABASES)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[URL]:
    """An empty database of each kind."""
    with database_url(request.param, tmp_path) as made:
        yield made


def migrated(engine: Engine, migrate: Callable[[Config, str], None], step: str) -> None:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        migrate(config, step)


@pytest.fixture
def old(url: URL) -> Iterator[Engine]:
    """A database as the first release left it, with orderings in it."""
    engine = create_engine(url)
    migrated(engine, command.upgrade, "0001")
    with engine.begin() as connection:
        for ordering_id, newest, create_time, delete_time in (
            ("a", 2, 1000, None),
            ("gone", 1, 500, 900),
            ("odd", 1, 700, None),
        ):
            connection.execute(
                text("INSERT INTO orderings VALUES (:id, 'lora', 'place', 'words', :labels, 7, :newest, :made, :gone)"),
                {"id": ordering_id, "labels": '{"k": "v"}', "newest": newest, "made": create_time, "gone": delete_time},
            )
        for (ordering_id, number), content in FILES.items():
            connection.execute(
                text(
                    "INSERT INTO ordering_revisions VALUES"
                    " (:id, :number, :digest, :size, :time, 'imported', '', '0.1', :content)"
                ),
                {
                    "id": ordering_id,
                    "number": number,
                    "digest": hashlib.sha256(content).hexdigest()[:16],
                    "size": len(content),
                    "time": 2000 + number,
                    "content": content,
                },
            )
    yield engine
    engine.dispose()


def test_a_database_of_the_first_release_is_brought_up_to_date(url: URL, old: Engine) -> None:
    store = SqlStore(url)
    shown = store.get("a")
    assert (shown.revision.number, shown.revision.file, shown.metadata.labels) == (2, FILES["a", 2], {"k": "v"})
    assert shown.revision.provenance == Provenance("imported", service_version="0.1")
    assert store.get("a", RevisionSelector("1")).revision.file == FILES["a", 1]
    said = [store.get("a", RevisionSelector(str(n))).revision.base_model_id for n in (1, 2)]
    assert (said, store.get("odd").revision.base_model_id) == (["org/old", "org/new�"], "")
    newest_first = ListQuery(parse_filter("update_time > 1970-01-01 AND base_model_id:new"))
    assert [o.ordering_id for o in store.list_orderings(newest_first, 10, 10**9).orderings] == ["a"]

    changes = store.changes_after(0, (), 10)
    assert [(c.sequence, c.ordering_id, c.type) for c in changes.changes] == [
        (1, "gone", ChangeType.CREATED),
        (2, "gone", ChangeType.DELETED),
        (3, "odd", ChangeType.CREATED),
        (4, "a", ChangeType.CREATED),
    ]
    assert changes.changes[-1].etag == shown.etag
    assert store.delete("a", shown.etag).etag == shown.etag
    assert store.newest_sequence() == 5
    store.close()


def test_a_step_back_keeps_every_document(url: URL, old: Engine) -> None:
    store = SqlStore(url)
    store.tag("a", None, "prod", None)
    store.close()
    migrated(old, command.downgrade, "0001")
    with old.connect() as connection:
        rows = connection.execute(text("SELECT ordering_id, revision_number, content FROM ordering_revisions")).all()
        tables: Any = old.dialect.get_table_names(connection)
    assert {(row[0], row[1]): bytes(row[2]) for row in rows} == FILES
    assert set(tables) == {"alembic_version", "orderings", "ordering_revisions", "secrets"}
    store = SqlStore(url)
    assert store.get("a").revision.file == FILES["a", 2]
    store.close()


def test_the_steps_lead_to_what_the_models_say(url: URL) -> None:
    store = SqlStore(url)
    with store.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Tables.metadata) == []
    store.close()


@pytest.mark.parametrize(
    "broken",
    [
        "UPDATE orderings SET revision_number = 0",
        "UPDATE orderings SET change_number = -1",
        "UPDATE ordering_revisions SET num_bytes = num_bytes + 1",
        "UPDATE ordering_revisions SET revision_number = 0 WHERE ordering_id = 'odd'",
        "UPDATE change_counter SET newest = -1",
        "INSERT INTO change_counter VALUES (2, 0)",
        "UPDATE ordering_changes SET sequence = -sequence",
        "UPDATE ordering_changes SET type = 'lost'",
        "INSERT INTO ordering_tags VALUES ('a', 'prod', 99)",
        "DELETE FROM orderings WHERE ordering_id = 'a'",
    ],
)
def test_the_database_itself_refuses_what_cannot_be(url: URL, old: Engine, broken: str) -> None:
    store = SqlStore(url)
    with pytest.raises(IntegrityError), store.engine.begin() as connection:
        connection.execute(text(broken))
    store.close()
