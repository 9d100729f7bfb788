"""The tables, as SQLAlchemy maps them; types that SQLite and PostgreSQL share."""

from __future__ import annotations

from sqlalchemy import BigInteger, ForeignKey, LargeBinary, String, Text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

ID_TYPE = String(63).with_variant(String(63, collation="C"), "postgresql")  # pages need the order of bytes


class Tables(DeclarativeBase):
    """All tables of the service."""


class OrderingRow(Tables):
    """One ordering, its metadata, and which revision is the newest. Deleted ones stay."""

    __tablename__ = "orderings"

    ordering_id: Mapped[str] = mapped_column(ID_TYPE, primary_key=True)
    kind: Mapped[str] = mapped_column(String(16))
    adapter_model_id: Mapped[str] = mapped_column(Text)
    description: Mapped[str] = mapped_column(Text)
    labels: Mapped[str] = mapped_column(Text)  # a JSON object
    change_number: Mapped[int] = mapped_column(BigInteger)  # the etag is made of it
    revision_number: Mapped[int] = mapped_column(BigInteger)  # of the newest revision
    create_time_us: Mapped[int] = mapped_column(BigInteger)  # microseconds since 1970, UTC
    delete_time_us: Mapped[int | None] = mapped_column(BigInteger)


class RevisionRow(Tables):
    """One revision: written once, never changed."""

    __tablename__ = "ordering_revisions"

    ordering_id: Mapped[str] = mapped_column(ID_TYPE, ForeignKey("orderings.ordering_id"), primary_key=True)
    revision_number: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    revision_id: Mapped[str] = mapped_column(String(16))
    num_bytes: Mapped[int] = mapped_column(BigInteger)
    create_time_us: Mapped[int] = mapped_column(BigInteger)
    method: Mapped[str] = mapped_column(String(32))
    config_digest: Mapped[str] = mapped_column(String(64))
    service_version: Mapped[str] = mapped_column(String(64))
    content: Mapped[bytes] = mapped_column(
        LargeBinary
    )  # the file, byte for byte; last, so that the rest is read without it


class SecretRow(Tables):
    """Keys that every server on this database shares."""

    __tablename__ = "secrets"

    name: Mapped[str] = mapped_column(String(63), primary_key=True)
    value: Mapped[bytes] = mapped_column(LargeBinary)
