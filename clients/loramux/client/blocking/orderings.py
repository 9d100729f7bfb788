"""`client.orderings` of the blocking client."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf
from pathlib import Path
from typing import Unpack

from loramux.client import ordering_calls, ordering_folders, ordering_history_calls
from loramux.client.adapters import AdapterKind
from loramux.client.blocking.connection import Connection
from loramux.client.blocking.ordering_watch import OrderingWatch
from loramux.client.changes import ChangeReader, OnOutage
from loramux.client.ordering_calls import OrderingSource, WriteOptions
from loramux.client.ordering_folders import FileReport
from loramux.client.ordering_history import OrderingDiff
from loramux.client.orderings import (
    DerivedOrdering,
    Destination,
    GeneratedOrdering,
    ModelReference,
    Ordering,
    OrderingDocument,
    OrderingFile,
    PreloadAdapter,
    Validation,
)


class OrderingApi:
    """Keeps, makes and judges ordering files. Every method raises LoramuxError.

    A write carries a request_id, so that it happens once although it is sent again while the service is away; the
    caller may give one, and `validate_only=True` to see the answer without the change. A stale `etag` raises Aborted.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def create(
        self,
        id: str,
        document: OrderingDocument,
        *,
        kind: AdapterKind | None = None,
        adapter_model_id: str = "",
        description: str = "",
        labels: Mapping[str, str] | None = None,
        **options: Unpack[WriteOptions],
    ) -> Ordering:
        """Stores a new ordering as revision 1."""
        return self._connection.run(
            ordering_calls.create_ordering(
                id,
                document,
                kind=kind,
                adapter_model_id=adapter_model_id,
                description=description,
                labels=labels or {},
                options=options,
            )
        )

    def get(self, name: str, revision: str | int | None = None, *, show_deleted: bool = False) -> Ordering:
        """The newest revision, or the one asked for (`demo`, `demo@3`, `demo@prod`, or `revision=3`)."""
        return self._connection.run(ordering_calls.get_ordering(name, revision, show_deleted))

    def list(self, filter: str = "", *, order_by: str = "", show_deleted: bool = False) -> tuple[Ordering, ...]:
        """The newest revision of every ordering that a filter lets through: `kind = xlora AND labels.team = "nlp"`.

        `order_by` is `ordering_id`, `create_time` or `update_time`, each perhaps followed by ` desc`.
        """
        return self._connection.run_pages(ordering_calls.list_orderings(filter, order_by, show_deleted))

    def revisions(self, name: str, *, show_deleted: bool = False) -> tuple[Ordering, ...]:
        """All revisions of an ordering, newest first."""
        return self._connection.run_pages(ordering_calls.list_revisions(name, show_deleted))

    def update(
        self,
        name: str,
        *,
        etag: str | None = None,
        document: OrderingDocument | None = None,
        kind: AdapterKind | None = None,
        adapter_model_id: str | None = None,
        description: str | None = None,
        labels: Mapping[str, str] | None = None,
        **options: Unpack[WriteOptions],
    ) -> Ordering:
        """Replaces what is not None; a changed document becomes a new revision."""
        return self._connection.run(
            ordering_calls.update_ordering(
                name,
                etag=etag,
                document=document,
                kind=kind,
                adapter_model_id=adapter_model_id,
                description=description,
                labels=labels,
                options=options,
            )
        )

    def delete(self, name: str, *, etag: str | None = None, **options: Unpack[WriteOptions]) -> Ordering:
        """Deletes an ordering and returns it as it was; its id stays taken until it is purged."""
        return self._connection.run(ordering_calls.delete_ordering(name, etag, options))

    def undelete(self, name: str, *, etag: str | None = None, **options: Unpack[WriteOptions]) -> Ordering:
        """Brings a deleted ordering back as it was."""
        return self._connection.run(ordering_history_calls.undelete_ordering(name, etag, options))

    def purge(self, name: str, *, etag: str | None = None, **options: Unpack[WriteOptions]) -> int:
        """Removes a deleted ordering for good, with all its revisions and tags; returns how many revisions it had."""
        return self._connection.run(ordering_history_calls.purge_ordering(name, etag, options))

    def rollback(
        self, name: str, revision: str | int, *, etag: str | None = None, **options: Unpack[WriteOptions]
    ) -> Ordering:
        """Makes the document of an earlier revision the newest one: a new revision with the same bytes."""
        return self._connection.run(ordering_history_calls.rollback_ordering(name, revision, etag, options))

    def tag(
        self,
        name: str,
        tag: str,
        revision: str | int | None = None,
        *,
        etag: str | None = None,
        **options: Unpack[WriteOptions],
    ) -> Ordering:
        """Points a tag at a revision (`demo@3`, `revision=3`, or the newest), from wherever it pointed before."""
        return self._connection.run(ordering_history_calls.tag_revision(name, tag, revision, etag, options))

    def untag(self, name: str, tag: str, *, etag: str | None = None, **options: Unpack[WriteOptions]) -> Ordering:
        """Takes a tag away."""
        return self._connection.run(ordering_history_calls.untag_revision(name, tag, etag, options))

    def diff(self, before: str, after: str) -> OrderingDiff:
        """How two revisions differ, of one ordering (`demo@3`, `demo@prod`) or of two."""
        return self._connection.run(ordering_history_calls.diff_orderings(before, after))

    def watch(
        self,
        names: Sequence[str] = (),
        *,
        after: int | None = None,
        max_outage_s: float = inf,
        on_outage: OnOutage | None = None,
    ) -> OrderingWatch:
        """Changes as they are written, each once and in order: of these orderings or of all, after a sequence or now.

        While the service is away, it waits (`max_outage_s` seconds at most, and `on_outage` is told), then goes on
        where it was. `.sequence` of the watch is where to resume in another process.
        """
        reader = ChangeReader(names, after, max_outage_s=max_outage_s, on_outage=on_outage)
        return OrderingWatch(self._connection, reader)

    def import_file(
        self,
        file: Path | str | bytes,
        id: str | None = None,
        *,
        allow_existing: bool = False,
        etag: str | None = None,
        kind: AdapterKind | None = None,
        adapter_model_id: str = "",
        description: str = "",
        labels: Mapping[str, str] | None = None,
        **options: Unpack[WriteOptions],
    ) -> Ordering:
        """Stores an ordering file unchanged; without an id, the file's name is its id. Raises OSError too."""
        return self._connection.run(
            ordering_calls.import_ordering(
                file,
                id,
                allow_existing=allow_existing,
                etag=etag,
                kind=kind,
                adapter_model_id=adapter_model_id,
                description=description,
                labels=labels,
                options=options,
            )
        )

    def import_files(
        self,
        places: Sequence[Path],
        *,
        allow_existing: bool = False,
        validate_only: bool = False,
        kind: AdapterKind | None = None,
        adapter_model_id: str = "",
        description: str = "",
        labels: Mapping[str, str] | None = None,
    ) -> tuple[FileReport, ...]:
        """Stores files, and the `.json` files in folders, each under its name as id; reports on each. Raises OSError.

        A refused file keeps no other from being stored; the same bytes again are unchanged.
        """
        return self._connection.run_steps(
            ordering_folders.import_files(
                places,
                allow_existing=allow_existing,
                validate_only=validate_only,
                kind=kind,
                adapter_model_id=adapter_model_id,
                description=description,
                labels=labels,
            )
        )

    def export_files(
        self, folder: Path, filter: str = "", *, overwrite: bool = False, validate_only: bool = False
    ) -> tuple[FileReport, ...]:
        """Writes the newest file of every ordering that a filter lets through as `{id}.json`. Raises OSError.

        Each file is there wholly or not at all; one with other content is refused unless it may be overwritten.
        """
        return self._connection.run_steps(
            ordering_folders.export_files(folder, filter=filter, overwrite=overwrite, validate_only=validate_only)
        )

    def export_file(self, name: str, revision: str | int | None = None) -> OrderingFile:
        """The file of a revision, byte for byte; `.save(path)` writes it."""
        return self._connection.run(ordering_calls.export_ordering(name, revision))

    def generate(
        self,
        model: ModelReference,
        targets: Sequence[str] | str,
        adapters: Sequence[str] = (),
        *,
        base_model_id: str | None = None,
        exclude: Sequence[str] | str = (),
        layers_to_transform: Sequence[int] = (),
        layers_pattern: Sequence[str] = (),
        destination: Destination | None = None,
        **options: Unpack[WriteOptions],
    ) -> GeneratedOrdering:
        """Makes `layers` from a model's config and target modules; stores the document if a destination is given.

        Targets are as in PEFT's LoraConfig: a list of names, or a string that is a regular expression or `all-linear`.
        """
        return self._connection.run(
            ordering_calls.generate_ordering(
                model,
                targets,
                adapters,
                base_model_id,
                exclude=exclude,
                layers_to_transform=layers_to_transform,
                layers_pattern=layers_pattern,
                destination=destination,
                options=options,
            )
        )

    def derive(
        self,
        source: str | bytes | Path,
        *,
        adapters: Sequence[str] | None = None,
        add_preload: Sequence[PreloadAdapter] = (),
        remove_preload: Sequence[str] = (),
        destination: Destination | None = None,
        **options: Unpack[WriteOptions],
    ) -> DerivedOrdering:
        """Makes a document from a stored one (`str`) or a file, with other adapter names or adapters to preload.

        Only the value of a changed key is written anew: every other byte of the file stays. Stores the document if a
        destination is given. Raises OSError if the file cannot be read.
        """
        return self._connection.run(
            ordering_calls.derive_ordering(
                source,
                adapter_names=adapters,
                add_preload=add_preload,
                remove_preload=remove_preload,
                destination=destination,
                options=options,
            )
        )

    def validate(
        self,
        source: OrderingSource,
        *,
        kind: AdapterKind | None = None,
        model: ModelReference | None = None,
        quantized_architecture: str = "",
        check_adapters: bool = False,
        adapter_model_id: str = "",
    ) -> Validation:
        """Every problem of a stored ordering (`str`), a file (`Path` or `bytes`) or a document. Raises OSError too.

        With `check_adapters` also those of the adapters and the classifier at `adapter_model_id`, a folder that the
        service may read; of a stored ordering at its own place unless another one is given.
        """
        return self._connection.run(
            ordering_calls.validate_ordering(
                source,
                kind=kind,
                model=model,
                quantized_architecture=quantized_architecture,
                check_adapters=check_adapters,
                adapter_model_id=adapter_model_id,
            )
        )
