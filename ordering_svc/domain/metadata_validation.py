"""Changes and judges what an owner says beside the file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ordering_svc.domain.ordering import AdapterKind, OrderingMetadata
from ordering_svc.domain.problems import shown
from ordering_svc.errors import InvalidRequest, Violation

MAX_LABEL_KEY_LENGTH = 128
MAX_LABEL_VALUE_LENGTH = 4096


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


def check_metadata(metadata: OrderingMetadata) -> None:
    """Refuse what no database can keep, and labels that are too long.

    Raises:
        InvalidRequest: with one violation for each fault.
    """
    violations = tuple(_violations(metadata))
    if violations:
        raise InvalidRequest(violations)


def _violations(metadata: OrderingMetadata) -> Iterator[Violation]:
    texts = {"adapter_model_id": metadata.adapter_model_id, "description": metadata.description}
    for field, text in texts.items():
        if "\0" in text:
            yield Violation(field, f"{field} holds a NUL character: remove it", InvalidRequest.reason)
    for key, value in metadata.labels.items():
        field = f'labels["{shown(key)}"]'
        if not 1 <= len(key) <= MAX_LABEL_KEY_LENGTH or "\0" in key:
            message = (
                f"a label's key has 1 to {MAX_LABEL_KEY_LENGTH} characters, none of them NUL; this one has {len(key)}"
            )
            yield Violation(field, message, InvalidRequest.reason)
        if len(value) > MAX_LABEL_VALUE_LENGTH or "\0" in value:
            message = (
                f"a label's value has at most {MAX_LABEL_VALUE_LENGTH} characters, none of them NUL; got {len(value)}"
            )
            yield Violation(field, message, InvalidRequest.reason)
