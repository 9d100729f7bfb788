"""Orderings, their revisions, and shared secrets."""

from __future__ import annotations

import secrets

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the first tables."""
    ordering_id = sa.String(63).with_variant(sa.String(63, collation="C"), "postgresql")
    op.create_table(
        "orderings",
        sa.Column("ordering_id", ordering_id, primary_key=True),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("adapter_model_id", sa.Text, nullable=False),
        sa.Column("description", sa.Text, nullable=False),
        sa.Column("labels", sa.Text, nullable=False),
        sa.Column("change_number", sa.BigInteger, nullable=False),
        sa.Column("revision_number", sa.BigInteger, nullable=False),
        sa.Column("create_time_us", sa.BigInteger, nullable=False),
        sa.Column("delete_time_us", sa.BigInteger, nullable=True),
    )
    op.create_table(
        "ordering_revisions",
        sa.Column("ordering_id", ordering_id, sa.ForeignKey("orderings.ordering_id"), primary_key=True),
        sa.Column("revision_number", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("revision_id", sa.String(16), nullable=False),
        sa.Column("num_bytes", sa.BigInteger, nullable=False),
        sa.Column("create_time_us", sa.BigInteger, nullable=False),
        sa.Column("method", sa.String(32), nullable=False),
        sa.Column("config_digest", sa.String(64), nullable=False),
        sa.Column("service_version", sa.String(64), nullable=False),
        sa.Column("content", sa.LargeBinary, nullable=False),
    )
    table = op.create_table(
        "secrets",
        sa.Column("name", sa.String(63), primary_key=True),
        sa.Column("value", sa.LargeBinary, nullable=False),
    )
    # Made here, under the migration's lock, so that all servers on the database share one.
    op.bulk_insert(table, [{"name": "page_token_key", "value": secrets.token_bytes(32)}])


def downgrade() -> None:
    """Drop the first tables."""
    op.drop_table("secrets")
    op.drop_table("ordering_revisions")
    op.drop_table("orderings")
