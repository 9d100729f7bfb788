"""Looks a database over: the library under it, its settings, its schema, and whether what it holds is consistent."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Engine, func, select, text
from sqlalchemy.engine import URL
from sqlalchemy.orm import Session

from ordering_svc.domain.ordering import revision_id_of
from ordering_svc.errors import CannotStart
from ordering_svc.persistence.database import connected, is_wal_safe, name_of, reading, schema_steps, sqlite_module
from ordering_svc.persistence.failures import database_errors
from ordering_svc.persistence.tables import ChangeCounterRow, ChangeRow, OrderingRow, RevisionRow, TagRow

MAX_NAMED = 5
BATCH_ROWS = 500


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found."""

    check: str
    is_sound: bool
    detail: str


def examine(url: URL) -> tuple[Finding, ...]:
    """Check a database without changing what it holds.

    Raises:
        CannotStart: there is no such database, or its driver is not installed.
        DatabaseUnreadable, DatabaseBusy, DatabaseNotWritable, DatabaseUnreachable: it cannot be read at all.
    """
    if url.get_backend_name() == "sqlite" and not Path(str(url.database)).is_file():
        raise CannotStart(f"{url.database}: there is no such database")
    engine = connected(url)
    try:
        with database_errors(name_of(url)):
            return tuple(_findings(engine))
    finally:
        engine.dispose()


def _findings(engine: Engine) -> Iterator[Finding]:
    if engine.dialect.name == "sqlite":
        yield from _of_sqlite(engine)
    else:
        with engine.connect() as connection:
            server = connection.execute(text("SHOW server_version")).scalar_one()
            durable = [
                connection.execute(text(f"SHOW {name}")).scalar_one() for name in ("fsync", "synchronous_commit")
            ]
        yield Finding("PostgreSQL", True, f"version {server}")
        detail = f"fsync={durable[0]}, synchronous_commit={durable[1]}"
        yield Finding("durability", durable[0] == "on" and durable[1] != "off", detail)
    current, newest = schema_steps(engine)
    detail = f"at step {current or 'none'}" + ("" if current == newest else f"; this version has {newest}: run migrate")
    yield Finding("schema", current == newest, detail)
    if current != newest:
        return  # the rest reads tables that may not be there
    checks: tuple[tuple[str, Callable[[Session], str]], ...] = (
        ("revisions", _revision_fault),
        ("contents", _content_fault),
        ("tags", _tag_fault),
        ("changes", _change_fault),
    )
    with Session(reading(engine)) as session:
        counts = {
            "revisions": session.scalar(select(func.count()).select_from(RevisionRow)),
            "contents": session.scalar(select(func.coalesce(func.sum(RevisionRow.num_bytes), 0))),
            "tags": session.scalar(select(func.count()).select_from(TagRow)),
            "changes": session.scalar(select(func.count()).select_from(ChangeRow)),
        }
        sound = {
            "revisions": "in all, without a gap",
            "contents": "bytes, every file has the digest that names it",
            "tags": "in all, each on a revision",
            "changes": "in all, without a gap",
        }
        for check, fault_of in checks:
            fault = fault_of(session)
            yield Finding(check, not fault, fault or f"{counts[check]} {sound[check]}")


def _of_sqlite(engine: Engine) -> Iterator[Finding]:
    version = sqlite_module().sqlite_version_info
    name = ".".join(map(str, version))
    is_safe = is_wal_safe(version)
    advice = "" if is_safe else ": it can lose commits in WAL mode, so the rollback journal is used; install pysqlite3"
    yield Finding("SQLite", is_safe, f"version {name}{advice}")
    with engine.connect() as connection:
        journal = connection.execute(text("PRAGMA journal_mode")).scalar_one()
        synchronous = connection.execute(text("PRAGMA synchronous")).scalar_one()
        yield Finding("durability", synchronous == 2, f"journal_mode={journal}, synchronous={synchronous} (2 is FULL)")
        verdicts = [str(row[0]) for row in connection.execute(text(f"PRAGMA integrity_check({MAX_NAMED})"))]
        yield Finding("file", verdicts == ["ok"], "; ".join(verdicts))
        orphans = connection.execute(text("PRAGMA foreign_key_check")).fetchall()
        yield Finding("references", not orphans, f"{len(orphans)} rows refer to nothing" if orphans else "all resolve")


def _revision_fault(session: Session) -> str:
    """Every ordering has revisions 1 to its newest, each once."""
    counted = (
        select(
            RevisionRow.ordering_id, func.count().label("count"), func.max(RevisionRow.revision_number).label("last")
        )
        .group_by(RevisionRow.ordering_id)
        .subquery()
    )
    faulty = (
        select(OrderingRow.ordering_id)
        .outerjoin(counted, counted.c.ordering_id == OrderingRow.ordering_id)
        .where(
            (counted.c.count.is_(None))
            | (counted.c.count != OrderingRow.revision_number)
            | (counted.c.last != OrderingRow.revision_number)
        )
        .order_by(OrderingRow.ordering_id)
        .limit(MAX_NAMED)
    )
    names = session.scalars(faulty).all()
    return f"the history has gaps in {', '.join(names)}" if names else ""


def _content_fault(session: Session) -> str:
    """Every file is the one that its revision id was made of."""
    columns = (RevisionRow.ordering_id, RevisionRow.revision_number, RevisionRow.revision_id, RevisionRow.content)
    in_order = select(*columns).order_by(RevisionRow.ordering_id, RevisionRow.revision_number)
    rows = session.execute(in_order, execution_options={"yield_per": BATCH_ROWS})
    faulty = [f"{name}@{number}" for name, number, id_, content in rows if revision_id_of(bytes(content)) != id_]
    more = f" and {len(faulty) - MAX_NAMED} more" if len(faulty) > MAX_NAMED else ""
    return f"the file was changed in {', '.join(faulty[:MAX_NAMED])}{more}" if faulty else ""


def _tag_fault(session: Session) -> str:
    dangling = (
        select(TagRow.ordering_id, TagRow.tag)
        .outerjoin(
            RevisionRow,
            (RevisionRow.ordering_id == TagRow.ordering_id) & (RevisionRow.revision_number == TagRow.revision_number),
        )
        .where(RevisionRow.ordering_id.is_(None))
        .limit(MAX_NAMED)
    )
    names = [f"{name}@{tag}" for name, tag in session.execute(dangling)]
    return f"no revision for {', '.join(names)}" if names else ""


def _change_fault(session: Session) -> str:
    """Changes are numbered from 1 to the counter."""
    count, first, last = session.execute(
        select(func.count(), func.min(ChangeRow.sequence), func.max(ChangeRow.sequence))
    ).one()
    newest = session.scalars(select(ChangeCounterRow.newest)).one()
    if count == 0 == newest or (first == 1 and last == newest == count):
        return ""
    return f"{count} changes numbered {first} to {last}, the counter is at {newest}"
