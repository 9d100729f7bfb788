"""What can be done with orderings: each use case is one method."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from ordering_svc.domain.generation import generate
from ordering_svc.domain.metadata_validation import check_metadata
from ordering_svc.domain.naming import checked_ordering_id, parse_name
from ordering_svc.domain.ordering import AdapterKind, Ordering, OrderingDocument, OrderingMetadata, Provenance
from ordering_svc.domain.ordering_json import parse_file, render_file
from ordering_svc.domain.problems import Problem
from ordering_svc.domain.validation import Expectations, validate_document, validate_file
from ordering_svc.errors import (
    EtagMismatch,
    InvalidOrdering,
    InvalidValue,
    OrderingDeleted,
    OrderingExists,
    Violation,
)
from ordering_svc.model_config.model import Model
from ordering_svc.model_config.reader import ModelSource
from ordering_svc.page_tokens import PageTokens
from ordering_svc.persistence.store import NewFile, OrderingStore, Page

DEFAULT_PAGE_SIZE = 50
MAX_PAGE_SIZE = 1000
MAX_PAGE_BYTES = 3 * 2**20  # of files: a client with gRPC's usual limit of 4 MiB can read every page of small ones
MAX_ATTEMPTS = 100  # of an unguarded change; each failed one means that another change came first

LIST_SCOPE = "ListOrderings"
REVISIONS_SCOPE = "ListOrderingRevisions"


class ReadsModels(Protocol):
    """Finds out what a model is made of."""

    def read(self, source: ModelSource) -> Model:
        """The model; raises errors of ours when it is malformed, not there, or not to be read."""
        ...


@dataclass(frozen=True, slots=True)
class MetadataChange:
    """The metadata to replace; None where it stays."""

    kind: AdapterKind | None = None
    adapter_model_id: str | None = None
    description: str | None = None
    labels: Mapping[str, str] | None = None

    def applied_to(self, metadata: OrderingMetadata) -> OrderingMetadata:
        """The metadata after the change."""
        return OrderingMetadata(
            metadata.kind if self.kind is None else self.kind,
            metadata.adapter_model_id if self.adapter_model_id is None else self.adapter_model_id,
            metadata.description if self.description is None else self.description,
            metadata.labels if self.labels is None else self.labels,
        )


@dataclass(frozen=True, slots=True)
class FileImport:
    """A file to store under an id, and what to do if the id is taken."""

    ordering_id: str
    file: bytes
    allow_existing: bool
    etag: str | None
    change: MetadataChange


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """The model and the modules to make an ordering for."""

    model: ModelSource
    target_modules: Sequence[str]
    adapter_names: Sequence[str]
    base_model_id: str | None  # None: what names the model


@dataclass(frozen=True, slots=True)
class Generated:
    """A document that was made, also as a file, and the model it was made from."""

    document: OrderingDocument
    file: bytes
    model: Model


@dataclass(frozen=True, slots=True)
class ListedPage:
    """One page of a list; the token is empty on the last one."""

    orderings: Sequence[Ordering]
    next_page_token: str


Judged = str | OrderingDocument | bytes  # a resource name, a document, or a file


@dataclass(frozen=True, slots=True)
class ValidationRequest:
    """What to judge, and against what."""

    source: Judged
    kind: AdapterKind | None  # None: a stored ordering's own
    model: ModelSource | None
    quantized_architecture: str


class Orderings:
    """The use cases over a store and a reader of models; blocking, and safe to use from several threads.

    Beside the errors that each method names, all that reach the store may raise its DatabaseBusy, DatabaseNotWritable,
    DatabaseFull and DatabaseUnreadable.
    """

    def __init__(self, store: OrderingStore, models: ReadsModels, service_version: str) -> None:
        self._store = store
        self._models = models
        self._version = service_version
        self._tokens = PageTokens(store.page_token_key())

    def create(self, ordering_id: str, metadata: OrderingMetadata, document: OrderingDocument) -> Ordering:
        """Store a document as revision 1. Raises InvalidRequest and OrderingExists."""
        checked_ordering_id(ordering_id)
        check_metadata(metadata)
        _refuse_errors(validate_document(document, Expectations(metadata.kind)), "ordering.document.")
        return self._store.create(ordering_id, metadata, self._new_file(render_file(document), "written"))

    def get(self, name: str) -> Ordering:
        """The newest or the named revision. Raises InvalidName, OrderingNotFound, RevisionNotFound."""
        parsed = parse_name(name, may_have_revision=True)
        return self._store.get(parsed.ordering_id, parsed.revision)

    def list_orderings(self, page_size: int, page_token: str) -> ListedPage:
        """A page of the newest revisions, by id. Raises InvalidPageToken."""
        after = self._tokens.read(LIST_SCOPE, page_token) if page_token else ""
        page = self._store.list_orderings(after, _limit(page_size), MAX_PAGE_BYTES)
        return self._listed(page, LIST_SCOPE, lambda last: last.ordering_id)

    def list_revisions(self, name: str, page_size: int, page_token: str) -> ListedPage:
        """A page of an ordering's revisions, newest first. Raises InvalidName, InvalidPageToken, OrderingNotFound."""
        ordering_id = parse_name(name, may_have_revision=False).ordering_id
        scope = f"{REVISIONS_SCOPE}/{ordering_id}"
        before = int(self._tokens.read(scope, page_token)) if page_token else None
        page = self._store.list_revisions(ordering_id, before, _limit(page_size), MAX_PAGE_BYTES)
        return self._listed(page, scope, lambda last: str(last.revision.number))

    def update(
        self, name: str, etag: str | None, change: MetadataChange, document: OrderingDocument | None
    ) -> Ordering:
        """Replace what is given. Raises InvalidRequest, OrderingNotFound, EtagMismatch."""
        ordering_id = parse_name(name, may_have_revision=False).ordering_id

        def changed(current: Ordering) -> tuple[OrderingMetadata, NewFile]:
            metadata = change.applied_to(current.metadata)
            check_metadata(metadata)
            stored = parse_file(current.revision.file).document
            wanted = stored if document is None else document
            _refuse_errors(validate_document(wanted, Expectations(metadata.kind)), "document.")
            # The same content keeps its bytes: a file's own spelling is not lost by writing back what was read.
            file = current.revision.file if wanted == stored else render_file(wanted)
            return metadata, self._new_file(file, "written")

        return self._change(ordering_id, etag, changed)

    def delete(self, name: str, etag: str | None) -> Ordering:
        """Hide an ordering; returns it as it was. Raises InvalidName, OrderingNotFound, EtagMismatch."""
        return self._store.delete(parse_name(name, may_have_revision=False).ordering_id, etag)

    def import_file(self, request: FileImport) -> Ordering:
        """Store a file unchanged, as a new ordering or as the next revision.

        Raises:
            InvalidRequest: the id, the metadata or the file; with one violation for each problem of the file.
            OrderingExists: the id is taken, and `allow_existing` is not set.
            OrderingDeleted: the id is taken by a deleted ordering.
            OrderingNotFound: an etag was given, but there is no such ordering.
            EtagMismatch: the etag is stale.
        """
        ordering_id = checked_ordering_id(request.ordering_id)
        if request.etag is not None and not request.allow_existing:
            raise InvalidValue("etag", "an etag guards an existing ordering: set allow_existing too, or leave it out")
        metadata = request.change.applied_to(OrderingMetadata())
        check_metadata(metadata)
        _refuse_errors(validate_file(request.file, Expectations(metadata.kind)), "json.")
        file = self._new_file(request.file, "imported")

        def changed(current: Ordering) -> tuple[OrderingMetadata, NewFile]:
            merged = request.change.applied_to(current.metadata)
            _refuse_errors(validate_file(request.file, Expectations(merged.kind)), "json.")
            return merged, file

        if request.etag is None:
            try:
                return self._store.create(ordering_id, metadata, file)
            except OrderingExists:
                if not request.allow_existing:
                    raise
        if self._store.is_deleted(ordering_id):
            raise OrderingDeleted(ordering_id)
        return self._change(ordering_id, request.etag, changed)

    def generate(self, request: GenerationRequest) -> Generated:
        """Make a document; nothing is stored.

        Raises:
            InvalidRequest: the architecture is unknown, a target matches nothing, the result would have problems.
            ModelNotFound, PathNotAllowed, HubUnavailable: the model's config cannot be read.
        """
        model = self._models.read(request.model)
        base_model_id = model.model_id if request.base_model_id is None else request.base_model_id
        if not base_model_id:
            raise InvalidValue("base_model_id", "the text of a config does not name its model: give base_model_id")
        document = generate(model.structure, request.target_modules, request.adapter_names, base_model_id)
        _refuse_errors(validate_document(document, Expectations()), "document.")
        return Generated(document, render_file(document), model)

    def validate(self, request: ValidationRequest) -> tuple[Problem, ...]:
        """Every problem of a document, in document order.

        Raises:
            InvalidName, OrderingNotFound, RevisionNotFound: of a stored ordering.
            InvalidRequest, ModelNotFound, PathNotAllowed, HubUnavailable: of the model.
        """
        structure = None if request.model is None else self._models.read(request.model).structure
        kind = request.kind or AdapterKind.UNSPECIFIED
        expectations = Expectations(kind, structure, request.quantized_architecture)
        match request.source:
            case str(name):
                stored = self.get(name)
                own = expectations if request.kind is not None else replace(expectations, kind=stored.metadata.kind)
                return validate_file(stored.revision.file, own)
            case bytes(file):
                return validate_file(file, expectations)
            case document:
                return validate_document(document, expectations)

    def _change(
        self, ordering_id: str, etag: str | None, change: Callable[[Ordering], tuple[OrderingMetadata, NewFile]]
    ) -> Ordering:
        """Compare and set: judged outside the transaction, compared inside; an unguarded change starts over."""
        for attempt in range(1, MAX_ATTEMPTS + 1):
            current = self._store.get(ordering_id)
            if etag is not None and etag != current.etag:
                raise EtagMismatch(ordering_id, etag, current.etag)
            metadata, file = change(current)
            try:
                return self._store.update(ordering_id, current.etag, metadata, file)
            except EtagMismatch:
                if etag is not None or attempt == MAX_ATTEMPTS:
                    raise
        raise AssertionError("unreachable: the last attempt returns or raises")

    def _new_file(self, content: bytes, method: str) -> NewFile:
        return NewFile(content, Provenance(method, service_version=self._version))

    def _listed(self, page: Page, scope: str, position: Callable[[Ordering], str]) -> ListedPage:
        token = self._tokens.sign(scope, position(page.orderings[-1])) if page.has_more else ""
        return ListedPage(page.orderings, token)


def _limit(page_size: int) -> int:
    return min(page_size or DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE)


def _refuse_errors(problems: Sequence[Problem], prefix: str) -> None:
    """Raises InvalidOrdering if any problem is an error; warnings do not stop anyone."""
    errors = [Violation(_field(prefix, p.field), f"{p.message} {p.hint}", p.code) for p in problems if p.is_error]
    if errors:
        raise InvalidOrdering(errors)


def _field(prefix: str, field: str) -> str:
    return f"{prefix}{field}" if field and not field.startswith("[") else f"{prefix.rstrip('.')}{field}"
