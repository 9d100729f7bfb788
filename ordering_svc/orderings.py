"""What can be done with orderings: each use case is one method."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from ordering_svc.domain.generation import generate
from ordering_svc.domain.ordering import AdapterKind, OrderingDocument
from ordering_svc.domain.ordering_json import render_file
from ordering_svc.domain.problems import Problem
from ordering_svc.domain.validation import Expectations, validate_document
from ordering_svc.errors import InvalidValue
from ordering_svc.judge import Against, Judge
from ordering_svc.model_config.model import Model
from ordering_svc.model_config.reader import ModelSource
from ordering_svc.persistence.store import OrderingStore
from ordering_svc.stored_orderings import StoredOrderings, refuse_errors


class ReadsModels(Protocol):
    """Finds out what a model is made of."""

    def read(self, source: ModelSource) -> Model:
        """The model; raises errors of ours when it is malformed, not there, or not to be read."""
        ...


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


Judged = str | OrderingDocument | bytes  # a resource name, a document, or a file


@dataclass(frozen=True, slots=True)
class ValidationRequest:
    """What to judge, and against what."""

    source: Judged
    against: Against  # what it leaves open is a stored ordering's own


class Orderings(StoredOrderings):
    """All use cases: those over a store, and those that also read models."""

    def __init__(self, store: OrderingStore, models: ReadsModels, judge: Judge, service_version: str) -> None:
        super().__init__(store, service_version)
        self._models = models
        self._judge = judge

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
        refuse_errors(validate_document(document, Expectations()), "document.")
        return Generated(document, render_file(document), model)

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
