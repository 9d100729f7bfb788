"""`client.orderings` of the asynchronous client."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from loramux.client import ordering_calls
from loramux.client.adapters import AdapterKind
from loramux.client.asynchronous.connection import AsyncConnection
from loramux.client.ordering_calls import OrderingSource
from loramux.client.orderings import (
    GeneratedOrdering,
    ModelReference,
    Ordering,
    OrderingDocument,
    OrderingFile,
    Validation,
)


class AsyncOrderingApi:
    """Keeps, makes and judges ordering files. Every method raises LoramuxError."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def create(
        self,
        id: str,
        document: OrderingDocument,
        *,
        kind: AdapterKind | None = None,
        adapter_model_id: str = "",
        description: str = "",
        labels: Mapping[str, str] | None = None,
    ) -> Ordering:
        """Stores a new ordering as revision 1."""
        return await self._connection.run(
            ordering_calls.create_ordering(
                id,
                document,
                kind=kind,
                adapter_model_id=adapter_model_id,
                description=description,
                labels=labels or {},
            )
        )

    async def get(self, name: str, revision: str | int | None = None) -> Ordering:
        """The newest revision, or the one asked for (`demo`, `demo@3`, or `revision=3`)."""
        return await self._connection.run(ordering_calls.get_ordering(name, revision))

    async def list(self) -> tuple[Ordering, ...]:
        """The newest revision of every ordering, by name."""
        return await self._connection.run_pages(ordering_calls.list_orderings)

    async def revisions(self, name: str) -> tuple[Ordering, ...]:
        """All revisions of an ordering, newest first."""
        return await self._connection.run_pages(ordering_calls.list_revisions(name))

    async def update(
        self,
        name: str,
        *,
        etag: str | None = None,
        document: OrderingDocument | None = None,
        kind: AdapterKind | None = None,
        adapter_model_id: str | None = None,
        description: str | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> Ordering:
        """Replaces what is not None; a changed document becomes a new revision. A stale `etag` raises Aborted."""
        return await self._connection.run(
            ordering_calls.update_ordering(
                name,
                etag=etag,
                document=document,
                kind=kind,
                adapter_model_id=adapter_model_id,
                description=description,
                labels=labels,
            )
        )

    async def delete(self, name: str, *, etag: str | None = None) -> Ordering:
        """Deletes an ordering and returns it as it was; its id stays taken. A stale `etag` raises Aborted."""
        return await self._connection.run(ordering_calls.delete_ordering(name, etag))

    async def import_file(
        self,
        file: Path | str | bytes,
        id: str | None = None,
        *,
        allow_existing: bool = False,
        etag: str | None = None,
        kind: AdapterKind | None = None,
        adapter_model_id: str = "",
        description: str = "",
    ) -> Ordering:
        """Stores an ordering file unchanged; without an id, the file's stem is its id. Raises OSError too."""
        return await self._connection.run(
            ordering_calls.import_ordering(
                file,
                id,
                allow_existing=allow_existing,
                etag=etag,
                kind=kind,
                adapter_model_id=adapter_model_id,
                description=description,
            )
        )

    async def export_file(self, name: str, revision: str | int | None = None) -> OrderingFile:
        """The file of a revision, byte for byte; `.save(path)` writes it."""
        return await self._connection.run(ordering_calls.export_ordering(name, revision))

    async def generate(
        self,
        model: ModelReference,
        targets: Sequence[str],
        adapters: Sequence[str] = (),
        *,
        base_model_id: str | None = None,
    ) -> GeneratedOrdering:
        """Makes `layers` from a model's config and target module names; stores nothing."""
        return await self._connection.run(ordering_calls.generate_ordering(model, targets, adapters, base_model_id))

    async def validate(
        self,
        source: OrderingSource,
        *,
        kind: AdapterKind | None = None,
        model: ModelReference | None = None,
        quantized_architecture: str = "",
    ) -> Validation:
        """Every problem of a stored ordering (`str`), a file (`Path` or `bytes`) or a document. Raises OSError too."""
        return await self._connection.run(
            ordering_calls.validate_ordering(
                source, kind=kind, model=model, quantized_architecture=quantized_architecture
            )
        )
