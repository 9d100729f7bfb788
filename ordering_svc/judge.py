"""Judges documents against the real thing: reads the headers that a document names, and hands them to the domain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ordering_svc.adapter_headers.reader import AdapterReader
from ordering_svc.allowed_roots import AllowedRoots
from ordering_svc.checkpoint_headers.reader import read_checkpoint
from ordering_svc.domain.headers import CheckpointHeader
from ordering_svc.domain.ordering import AdapterKind, OrderingDocument
from ordering_svc.domain.ordering_json import ParsedFile, parse_file
from ordering_svc.domain.problems import Problem
from ordering_svc.domain.validation import Expectations, validate_document, validate_parsed
from ordering_svc.model_config.reader import HubModel, LocalModel, ModelReader, ModelSource


@dataclass(frozen=True, slots=True)
class Against:
    """What a document is judged against."""

    kind: AdapterKind = AdapterKind.UNSPECIFIED
    model: ModelSource | None = None
    quantized_architecture: str = ""
    checks_adapters: bool = False
    adapter_model_id: str = ""  # where the adapters of `order` are, if they are checked


class Judge:
    """Blocking, and safe to use from several threads."""

    def __init__(self, models: ModelReader, model_roots: Sequence[Path], adapter_roots: Sequence[Path]) -> None:
        self._models = models
        self._model_roots = AllowedRoots(model_roots, "--model-root")
        self._adapters = AdapterReader(AllowedRoots(adapter_roots, "--adapter-root"))

    def problems(self, judged: bytes | OrderingDocument, against: Against) -> tuple[Problem, ...]:
        """Every problem of a file or a document, in its own order.

        Raises:
            InvalidRequest, ModelNotFound, PathNotAllowed, HubUnavailable: of the model's config.
        """
        parsed = parse_file(judged) if isinstance(judged, bytes) else judged
        document = parsed.document if isinstance(parsed, ParsedFile) else parsed
        expectations = self._expectations(document, against)
        if isinstance(parsed, ParsedFile):
            return validate_parsed(parsed, expectations)
        return validate_document(parsed, expectations)

    def _expectations(self, document: OrderingDocument, against: Against) -> Expectations:
        kind, structure, hidden_size, checkpoint, adapters = against.kind, None, None, None, None
        if against.model is not None:
            model = self._models.read(against.model)
            structure, hidden_size = model.structure, model.hidden_size
        if structure is not None and isinstance(against.model, LocalModel):
            path = self._model_roots.find(against.model.path, "model.path")
            checkpoint = read_checkpoint(path, structure, self._model_roots)
        if isinstance(checkpoint, CheckpointHeader):
            hidden_size = checkpoint.hidden_size or hidden_size
        if against.checks_adapters:
            adapters = self._adapters.read(document, against.adapter_model_id, kind)
            if kind is AdapterKind.UNSPECIFIED and adapters.xlora is not None:
                kind = AdapterKind.XLORA
        model_id = against.model.hub_id.partition("@")[0] if isinstance(against.model, HubModel) else ""
        return Expectations(
            kind, structure, against.quantized_architecture, model_id, hidden_size, checkpoint, adapters
        )
