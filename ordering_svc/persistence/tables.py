"""The tables, as SQLAlchemy maps them; types that SQLite and PostgreSQL share."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    LargeBinary,
    String,
    Text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

# Pages and filters need the order of bytes, which is SQLite's own.
ID_TYPE = String(63).with_variant(String(63, collation="C"), "postgresql")
TEXT_TYPE = Text().with_variant(Text(collation="C"), "postgresql")


class Tables(DeclarativeBase):
    """All tables of the service."""


class OrderingRow(Tables):
    """One ordering, its metadata, and which revision is the newest. Deleted ones stay until they are purged."""

    __tablename__ = "orderings"
    __table_args__ = (
        CheckConstraint("change_number > 0 AND revision_number > 0", name="orderings_numbers"),
        Index("orderings_by_create_time", "create_time_us", "ordering_id"),
        Index("orderings_by_update_time", "update_time_us", "ordering_id"),
    )

    ordering_id: Mapped[str] = mapped_column(ID_TYPE, primary_key=True)
    kind: Mapped[str] = mapped_column(String(16))
    adapter_model_id: Mapped[str] = mapped_column(TEXT_TYPE)
    description: Mapped[str] = mapped_column(TEXT_TYPE)
    labels: Mapped[str] = mapped_column(Text)  # a JSON object
    change_number: Mapped[int] = mapped_column(BigInteger)  # the etag is made of it
    revision_number: Mapped[int] = mapped_column(BigInteger)  # of the newest revision
    create_time_us: Mapped[int] = mapped_column(BigInteger)  # microseconds since 1970, UTC
    delete_time_us: Mapped[int | None] = mapped_column(BigInteger)
    update_time_us: Mapped[int] = mapped_column(BigInteger, server_default="0")  # of the newest revision, for the index


class RevisionRow(Tables):
    """One revision: written once, never changed."""

    __tablename__ = "ordering_revisions"
    __table_args__ = (
        CheckConstraint("revision_number > 0 AND num_bytes = length(content)", name="ordering_revisions_numbers"),
        Index("ordering_revisions_by_id", "ordering_id", "revision_id"),
    )

    ordering_id: Mapped[str] = mapped_column(ID_TYPE, ForeignKey("orderings.ordering_id"), primary_key=True)
    revision_number: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    revision_id: Mapped[str] = mapped_column(String(16))
    num_bytes: Mapped[int] = mapped_column(BigInteger)
    create_time_us: Mapped[int] = mapped_column(BigInteger)
    method: Mapped[str] = mapped_column(String(32))
    config_digest: Mapped[str] = mapped_column(String(64))
    service_version: Mapped[str] = mapped_column(String(64))
    content: Mapped[bytes] = mapped_column(LargeBinary)  # the file, byte for byte
    base_model_id: Mapped[str] = mapped_column(TEXT_TYPE, server_default="")  # what the document says, for filters
    model: Mapped[str] = mapped_column(Text, server_default="")
    source: Mapped[str] = mapped_column(Text, server_default="")
    arguments: Mapped[str] = mapped_column(Text, server_default="")  # a JSON object, or nothing
    module_order: Mapped[str] = mapped_column(String(64), server_default="")


class TagRow(Tables):
    """A name that points at one revision of an ordering."""

    __tablename__ = "ordering_tags"
    __table_args__ = (
        ForeignKeyConstraint(
            ["ordering_id", "revision_number"],
            ["ordering_revisions.ordering_id", "ordering_revisions.revision_number"],
        ),
    )

    ordering_id: Mapped[str] = mapped_column(ID_TYPE, primary_key=True)
    tag: Mapped[str] = mapped_column(ID_TYPE, primary_key=True)
    revision_number: Mapped[int] = mapped_column(BigInteger)


class ChangeRow(Tables):
    """One change of one ordering: kept for ever, also when the ordering is purged."""

    __tablename__ = "ordering_changes"
    __table_args__ = (
        CheckConstraint("sequence > 0", name="ordering_changes_sequence"),
        CheckConstraint(
            "type IN ('created', 'updated', 'tagged', 'deleted', 'undeleted', 'purged')", name="ordering_changes_type"
        ),
        Index("ordering_changes_by_ordering", "ordering_id", "sequence"),
    )

    sequence: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    type: Mapped[str] = mapped_column(String(16))
    ordering_id: Mapped[str] = mapped_column(ID_TYPE)
    revision_number: Mapped[int] = mapped_column(BigInteger)
    revision_id: Mapped[str] = mapped_column(String(16))
    etag: Mapped[str] = mapped_column(String(64))
    change_time_us: Mapped[int] = mapped_column(BigInteger)
    tag: Mapped[str] = mapped_column(String(63))
    tagged_revision_number: Mapped[int] = mapped_column(BigInteger)


class ChangeCounterRow(Tables):
    """The sequence of the newest change, in the only row: who updates it commits before the next one can."""

    __tablename__ = "change_counter"
    __table_args__ = (CheckConstraint("id = 1 AND newest >= 0", name="change_counter_single"),)

    id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    newest: Mapped[int] = mapped_column(BigInteger)


class RequestRow(Tables):
    """The answer that a write with a request id was given."""

    __tablename__ = "write_requests"
    __table_args__ = (
        CheckConstraint("revision_number > 0", name="write_requests_revision"),
        Index("write_requests_by_create_time", "create_time_us"),
        Index("write_requests_by_ordering", "ordering_id"),
    )

    request_id: Mapped[str] = mapped_column(String(36), primary_key=True)
    digest: Mapped[str] = mapped_column(String(64))  # of the method and what it was asked for
    create_time_us: Mapped[int] = mapped_column(BigInteger)
    ordering_id: Mapped[str] = mapped_column(ID_TYPE)
    revision_number: Mapped[int] = mapped_column(BigInteger)
    answer: Mapped[str] = mapped_column(Text)  # a JSON object: the ordering that was answered, without its file
    content: Mapped[bytes | None] = mapped_column(LargeBinary)  # the file, once its revision is purged


class SecretRow(Tables):
    """Keys that every server on this database shares."""

    __tablename__ = "secrets"

    name: Mapped[str] = mapped_column(String(63), primary_key=True)
    value: Mapped[bytes] = mapped_column(LargeBinary)
