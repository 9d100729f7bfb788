"""What can be done with orderings: each use case is one method."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from ordering_svc.domain.architectures import TRANSFORMERS_VERSION
from ordering_svc.domain.derivation import Derivation, derive
from ordering_svc.domain.generation import generate
from ordering_svc.domain.naming import resource_name
from ordering_svc.domain.ordering import AdapterKind, Ordering, OrderingDocument, Provenance
from ordering_svc.domain.ordering_json import parse_file, render_file
from ordering_svc.domain.path_patterns import MatchesPaths
from ordering_svc.domain.problems import Problem
from ordering_svc.domain.provenance import arguments_json
from ordering_svc.domain.target_selection import TargetSelection
from ordering_svc.domain.validation import Expectations, validate_document, validate_file
from ordering_svc.errors import EtagMismatch, InvalidValue
from ordering_svc.judge import Against, Judge
from ordering_svc.model_config.model import Model
from ordering_svc.model_config.reader import ModelSource
from ordering_svc.patterns.bounded import match_paths
from ordering_svc.persistence.store import PLAIN, OrderingStore, WriteRequest
from ordering_svc.stored_orderings import MAX_ATTEMPTS, Destination, StoredOrderings, refuse_errors


class ReadsModels(Protocol):
    """Finds out what a model is made of."""

    def read(self, source: ModelSource) -> Model:
        """The model; raises errors of ours when it is malformed, not there, or not to be read."""
        ...


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """The model and the modules to make an ordering for, and where to store it, if it is stored."""

    model: ModelSource
    selection: TargetSelection
    adapter_names: Sequence[str]
    base_model_id: str | None  # None: what names the model
    destination: Destination | None = None


@dataclass(frozen=True, slots=True)
class Generated:
    """A document that was made, also as a file, what it was made from, and what was stored."""

    document: OrderingDocument
    file: bytes
    architecture: str
    config_digest: str
    stored: Ordering | None = None


@dataclass(frozen=True, slots=True)
class DerivationRequest:
    """What to start from, what to change in it, and where to store it, if it is stored."""

    source: str | bytes  # the name of a stored ordering, or a file
    derivation: Derivation
    destination: Destination | None = None


@dataclass(frozen=True, slots=True)
class Derived:
    """A file that was made from another one, and what was stored."""

    document: OrderingDocument
    file: bytes
    stored: Ordering | None = None


Judged = str | OrderingDocument | bytes  # a resource name, a document, or a file


@dataclass(frozen=True, slots=True)
class ValidationRequest:
    """What to judge, and against what."""

    source: Judged
    against: Against  # what it leaves open is a stored ordering's own


class Orderings(StoredOrderings):
    """All use cases: those over a store, and those that also read models."""

    def __init__(
        self,
        store: OrderingStore,
        models: ReadsModels,
        judge: Judge,
        service_version: str,
        match: MatchesPaths = match_paths,
    ) -> None:
        super().__init__(store, service_version)
        self._models = models
        self._judge = judge
        self._match = match

    def generate(self, request: GenerationRequest, how: WriteRequest = PLAIN) -> Generated:
        """Make a document from a model's config, and store it if a destination is given.

        Raises:
            InvalidRequest: the architecture is unknown, what is selected does not fit, the result would have problems.
            ModelNotFound, PathNotAllowed, HubUnavailable: the model's config cannot be read.
            OrderingServiceError: of the destination, as for `store_made`.
        """
        answered = self.remembered(how) if request.destination is not None else None
        # The same bytes may have been there before, and made otherwise: then it is found out again.
        if answered is not None and answered.revision.provenance.method == "generated":
            revision = answered.revision
            architecture = json.loads(revision.provenance.arguments)["architecture"]
            document = parse_file(revision.file).document
            return Generated(document, revision.file, architecture, revision.provenance.config_digest, answered)
        model = self._models.read(request.model)
        base_model_id = model.model_id if request.base_model_id is None else request.base_model_id
        if not base_model_id:
            raise InvalidValue("base_model_id", "the text of a config does not name its model: give base_model_id")
        document = generate(model.structure, request.selection, request.adapter_names, base_model_id, self._match)
        refuse_errors(validate_document(document, Expectations()), "document.")
        file = render_file(document)
        architecture = model.structure.architecture
        if request.destination is None:
            return Generated(document, file, architecture, model.config_digest)
        provenance = Provenance(
            "generated",
            config_digest=model.config_digest,
            model=model.model_id,
            arguments=arguments_json(request.selection, architecture=architecture),
            module_order=TRANSFORMERS_VERSION,
        )
        stored = self.store_made(request.destination, file, provenance, how)
        document = parse_file(stored.revision.file).document
        return Generated(document, stored.revision.file, architecture, model.config_digest, stored)

    def derive(self, request: DerivationRequest, how: WriteRequest = PLAIN) -> Derived:
        """Make a file from another one, and store it if a destination is given.

        Raises:
            InvalidName, OrderingNotFound, RevisionNotFound: of the ordering to start from.
            InvalidRequest: the file to start from cannot be read, the change does not fit what is there, or the result
                would have problems.
            OrderingServiceError: of the destination, as for `store_made`.
        """
        where = request.destination
        if where is None:
            _start, file = self._derived(request)
            return Derived(parse_file(file).document, file)
        stored = self._once(how, lambda: self._store_derived(request, where, how))
        return Derived(parse_file(stored.revision.file).document, stored.revision.file, stored)

    def _store_derived(self, request: DerivationRequest, where: Destination, how: WriteRequest) -> Ordering:
        """Compare and set where an ordering becomes its own next revision: no change that came between is undone."""
        for attempt in range(1, MAX_ATTEMPTS + 1):
            start, file = self._derived(request)
            provenance = Provenance("derived", arguments=arguments_json(request.derivation))
            if start is None:
                return self.store_made(where, file, provenance, how)
            names_newest = isinstance(request.source, str) and "@" not in request.source
            is_own_next = where.ordering_id == start.ordering_id and where.etag is None and names_newest
            guarded = replace(where, etag=start.etag) if is_own_next and where.allow_existing else where
            provenance = replace(provenance, source=f"{resource_name(start.ordering_id)}@{start.revision.number}")
            try:
                return self.store_made(guarded, file, provenance, how)
            except EtagMismatch:
                if guarded is where or attempt == MAX_ATTEMPTS:
                    raise
        raise AssertionError("unreachable: the last attempt returns or raises")

    def _derived(self, request: DerivationRequest) -> tuple[Ordering | None, bytes]:
        """What is started from, if it is stored, and the file that it becomes."""
        if isinstance(request.source, bytes):
            start, kind, before = None, AdapterKind.UNSPECIFIED, request.source
            refuse_errors(parse_file(before).problems, "json.")
        else:
            start = self.get(request.source)
            kind, before = start.metadata.kind, start.revision.file
        file = derive(before, request.derivation)
        refuse_errors(validate_file(file, Expectations(kind)), "document.")
        return start, file

    def validate(self, request: ValidationRequest) -> tuple[Problem, ...]:
        """Every problem of a document, in document order.

        Raises:
            InvalidName, OrderingNotFound, RevisionNotFound: of a stored ordering.
            InvalidRequest, ModelNotFound, PathNotAllowed, HubUnavailable: of the model.
        """
        if not isinstance(request.source, str):
            return self._judge.problems(request.source, request.against)
        stored, against = self.get(request.source), request.against
        metadata = stored.metadata
        own = replace(
            against,
            kind=metadata.kind if against.kind is AdapterKind.UNSPECIFIED else against.kind,
            adapter_model_id=against.adapter_model_id or metadata.adapter_model_id,
        )
        return self._judge.problems(stored.revision.file, own)
