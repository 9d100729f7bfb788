"""History: tags, changes, answers to requests, more of provenance, and indexes for sorted lists."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

ORDERING_ID = sa.String(63).with_variant(sa.String(63, collation="C"), "postgresql")
# SQLite takes a new constraint only together with a new column, so each stands at one.
ADDED_COLUMNS = (
    (
        "orderings",
        "update_time_us",
        "BIGINT NOT NULL DEFAULT 0 CONSTRAINT orderings_numbers CHECK (change_number > 0 AND revision_number > 0)",
    ),
    (
        "ordering_revisions",
        "base_model_id",
        "TEXT {bytewise} NOT NULL DEFAULT '' CONSTRAINT ordering_revisions_numbers"
        " CHECK (revision_number > 0 AND num_bytes = length(content))",
    ),
    ("ordering_revisions", "model", "TEXT NOT NULL DEFAULT ''"),
    ("ordering_revisions", "source", "TEXT NOT NULL DEFAULT ''"),
    ("ordering_revisions", "arguments", "TEXT NOT NULL DEFAULT ''"),
    ("ordering_revisions", "module_order", "VARCHAR(64) NOT NULL DEFAULT ''"),
)
INDEXES = (
    ("orderings_by_create_time", "orderings", ("create_time_us", "ordering_id")),
    ("orderings_by_update_time", "orderings", ("update_time_us", "ordering_id")),
    ("ordering_revisions_by_id", "ordering_revisions", ("ordering_id", "revision_id")),
    ("ordering_changes_by_ordering", "ordering_changes", ("ordering_id", "sequence")),
    ("write_requests_by_create_time", "write_requests", ("create_time_us",)),
    ("write_requests_by_ordering", "write_requests", ("ordering_id",)),
)


def upgrade() -> None:
    """Add what this step brings."""
    is_postgresql = op.get_bind().dialect.name == "postgresql"
    for table, column, definition in ADDED_COLUMNS:
        bytewise = 'COLLATE "C"' if is_postgresql else ""
        op.execute(f"ALTER TABLE {table} ADD COLUMN {column} {definition.format(bytewise=bytewise)}")
    if is_postgresql:  # filters compare bytes, as SQLite does
        for column in ("adapter_model_id", "description"):
            op.execute(f'ALTER TABLE orderings ALTER COLUMN {column} TYPE TEXT COLLATE "C"')
    _make_tables()
    for name, table, columns in INDEXES:
        op.create_index(name, table, list(columns))
    _fill_update_times()
    _fill_base_models()
    _fill_changes()


def _make_tables() -> None:
    op.create_table(
        "ordering_tags",
        sa.Column("ordering_id", ORDERING_ID, primary_key=True),
        sa.Column("tag", ORDERING_ID, primary_key=True),
        sa.Column("revision_number", sa.BigInteger, nullable=False),
        sa.ForeignKeyConstraint(
            ["ordering_id", "revision_number"],
            ["ordering_revisions.ordering_id", "ordering_revisions.revision_number"],
        ),
    )
    op.create_table(
        "ordering_changes",
        sa.Column("sequence", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("type", sa.String(16), nullable=False),
        sa.Column("ordering_id", ORDERING_ID, nullable=False),
        sa.Column("revision_number", sa.BigInteger, nullable=False),
        sa.Column("revision_id", sa.String(16), nullable=False),
        sa.Column("etag", sa.String(64), nullable=False),
        sa.Column("change_time_us", sa.BigInteger, nullable=False),
        sa.Column("tag", sa.String(63), nullable=False),
        sa.Column("tagged_revision_number", sa.BigInteger, nullable=False),
        sa.CheckConstraint("sequence > 0", name="ordering_changes_sequence"),
        sa.CheckConstraint(
            "type IN ('created', 'updated', 'tagged', 'deleted', 'undeleted', 'purged')", name="ordering_changes_type"
        ),
    )
    op.create_table(
        "change_counter",
        sa.Column("id", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("newest", sa.BigInteger, nullable=False),
        sa.CheckConstraint("id = 1 AND newest >= 0", name="change_counter_single"),
    )
    op.create_table(
        "write_requests",
        sa.Column("request_id", sa.String(36), primary_key=True),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("create_time_us", sa.BigInteger, nullable=False),
        sa.Column("ordering_id", ORDERING_ID, nullable=False),
        sa.Column("revision_number", sa.BigInteger, nullable=False),
        sa.Column("answer", sa.Text, nullable=False),
        sa.Column("content", sa.LargeBinary, nullable=True),
        sa.CheckConstraint("revision_number > 0", name="write_requests_revision"),
    )


def _fill_update_times() -> None:
    op.execute(
        "UPDATE orderings SET update_time_us = (SELECT r.create_time_us FROM ordering_revisions r"
        " WHERE r.ordering_id = orderings.ordering_id AND r.revision_number = orderings.revision_number)"
    )


def _fill_base_models() -> None:
    """What each document says, one file in memory at a time."""
    bind = op.get_bind()
    keys = bind.execute(sa.text("SELECT ordering_id, revision_number FROM ordering_revisions")).all()
    read = sa.text("SELECT content FROM ordering_revisions WHERE ordering_id = :id AND revision_number = :number")
    write = sa.text(
        "UPDATE ordering_revisions SET base_model_id = :said WHERE ordering_id = :id AND revision_number = :number"
    )
    for ordering_id, number in keys:
        key = {"id": ordering_id, "number": number}
        said = _base_model_id(bytes(bind.execute(read, key).scalar_one()))
        if said:
            bind.execute(write, key | {"said": said})


def _base_model_id(content: bytes) -> str:
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        return ""
    said = document.get("base_model_id") if isinstance(document, dict) else None
    return said.replace("\0", "�").encode("utf-8", "replace").decode() if isinstance(said, str) else ""


def _fill_changes() -> None:
    """Orderings that are there already were created, and perhaps deleted: who watches from the start sees them."""
    changes = sa.table(
        "ordering_changes",
        sa.column("sequence"),
        sa.column("type"),
        sa.column("ordering_id"),
        sa.column("revision_number"),
        sa.column("revision_id"),
        sa.column("etag"),
        sa.column("change_time_us"),
        sa.column("tag"),
        sa.column("tagged_revision_number"),
    )
    rows = [
        {"sequence": sequence, "tag": "", "tagged_revision_number": 0} | change
        for sequence, change in enumerate(_changes_so_far(), start=1)
    ]
    if rows:
        op.bulk_insert(changes, rows)
    counter = sa.table("change_counter", sa.column("id"), sa.column("newest"))
    op.bulk_insert(counter, [{"id": 1, "newest": len(rows)}])


def _changes_so_far() -> Iterator[dict[str, object]]:
    orderings = op.get_bind().execute(
        sa.text(
            "SELECT o.ordering_id, o.change_number, o.create_time_us, o.delete_time_us, r.revision_number,"
            " r.revision_id"
            " FROM orderings o JOIN ordering_revisions r"
            " ON r.ordering_id = o.ordering_id AND r.revision_number = o.revision_number"
            " ORDER BY o.create_time_us, o.ordering_id"
        )
    )
    for row in orderings:
        digest = hashlib.sha256(f"{row.ordering_id}/{row.create_time_us}".encode()).hexdigest()[:12]
        common = {
            "ordering_id": row.ordering_id,
            "revision_number": row.revision_number,
            "revision_id": row.revision_id,
            "etag": f'"{row.change_number:x}-{digest}"',
        }
        yield common | {"type": "created", "change_time_us": row.create_time_us}
        if row.delete_time_us is not None:
            yield common | {"type": "deleted", "change_time_us": row.delete_time_us}


def downgrade() -> None:
    """Take it away again: tags, changes and answers to requests are lost, documents are not."""
    for name, table, _ in INDEXES:
        op.drop_index(name, table)
    for table in ("write_requests", "change_counter", "ordering_changes", "ordering_tags"):
        op.drop_table(table)
    for table, column, _ in reversed(ADDED_COLUMNS):
        op.execute(f"ALTER TABLE {table} DROP COLUMN {column}")
    if op.get_bind().dialect.name == "postgresql":
        op.execute("ALTER TABLE orderings DROP CONSTRAINT IF EXISTS orderings_numbers")
        op.execute("ALTER TABLE ordering_revisions DROP CONSTRAINT IF EXISTS ordering_revisions_numbers")
