"""The examination of a database: sound as we write it, and every kind of damage is found and named."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.engine import URL

from ordering_svc.domain.naming import RevisionSelector
from ordering_svc.domain.ordering import OrderingMetadata, Provenance
from ordering_svc.errors import CannotStart
from ordering_svc.persistence.examination import examine
from ordering_svc.persistence.sql_store import SqlStore
from ordering_svc.persistence.store import NewFile
from tests.databases import DATABASES, database_url


@pytest.fixture(params=DATABASES)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[URL]:
    """A database with two orderings of two revisions each, and a tag."""
    with database_url(request.param, tmp_path) as made:
        store = SqlStore(made)
        for ordering_id in ("a", "b"):
            first = store.create(ordering_id, OrderingMetadata(), _file(b"1"))
            store.update(ordering_id, first.etag, OrderingMetadata(), _file(b"2"))
        store.tag("a", None, "prod", RevisionSelector("1"))
        store.close()
        yield made


def _file(name: bytes) -> NewFile:
    return NewFile(b'{"base_model_id": "%s"}' % name, Provenance("written"))


REVISIONS_B = ("revisions", "gaps in b")


def damage(url: URL, *statements: str) -> None:
    store = SqlStore(url)
    with store.engine.begin() as connection:
        for statement in statements:
            connection.execute(text(statement))
    store.close()


def unsound(url: URL) -> dict[str, str]:
    return {finding.check: finding.detail for finding in examine(url) if not finding.is_sound}


def test_a_database_that_the_service_wrote_is_sound(url: URL) -> None:
    assert unsound(url) == {}
    assert {"schema", "durability", "revisions", "contents", "tags", "changes"} <= {f.check for f in examine(url)}


@pytest.mark.parametrize(
    ("statement", "check", "named"),
    [
        (
            "UPDATE ordering_revisions SET revision_number = 7 WHERE ordering_id='b' AND revision_number=2",
            "revisions",
            "b",
        ),
        ("UPDATE orderings SET revision_number = 3 WHERE ordering_id='a'", "revisions", "a"),
        (
            "UPDATE ordering_revisions SET revision_id = '0000000000000000' WHERE ordering_id='b'",
            "contents",
            "b@1, b@2",
        ),
        ("DELETE FROM ordering_changes WHERE sequence = 2", "changes", "the counter is at 5"),
        ("UPDATE change_counter SET newest = 9", "changes", "the counter is at 9"),
        ("UPDATE alembic_version SET version_num = '0001'", "schema", "run migrate"),
    ],
)
def test_damage_is_found_and_named(url: URL, statement: str, check: str, named: str) -> None:
    damage(url, statement)
    found = unsound(url)
    assert named in found[check], found


def test_a_database_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(CannotStart, match="there is no such database"):
        examine(URL.create("sqlite", database=str(tmp_path / "none")))
    assert not (tmp_path / "none").exists()
