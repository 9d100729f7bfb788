"""What is wrong with a document: one finding each, with a stable code, a place and a sentence."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum

SHOWN_CHARACTERS = 120


class Severity(Enum):
    """How bad a problem is."""

    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True, slots=True)
class Problem:
    """One finding of a validation."""

    code: str  # stable, upper-case
    field: str  # path into the document, for instance `layers["lm_head"]`
    message: str  # one sentence: the offending name and value, and what to do
    severity: Severity = Severity.ERROR
    entry: int = dataclasses.field(
        default=0, compare=False
    )  # place inside its top-level key; findings are sorted by it

    @property
    def is_error(self) -> bool:
        """The ordering cannot work with it."""
        return self.severity is Severity.ERROR


def in_document_order(problems: Iterable[Problem], keys: Sequence[str]) -> tuple[Problem, ...]:
    """The problems sorted by the place of their top-level key in `keys`, then by entry; the whole file's come first."""
    rank = {key: place for place, key in enumerate(keys, start=1)}

    def place_of(problem: Problem) -> tuple[int, int]:
        key = problem.field.partition("[")[0]
        return (0 if not key else rank.get(key, len(rank) + 1), problem.entry)

    return tuple(sorted(problems, key=place_of))


def shown(value: object) -> str:
    """A value from a document as a message shows it: short, on one line, always valid Unicode."""
    try:
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    except (ValueError, RecursionError):
        text = type(value).__name__
    if len(text) > SHOWN_CHARACTERS:
        text = text[: SHOWN_CHARACTERS - 3] + "..."
    text = "".join(letter if letter.isprintable() else f"\\u{ord(letter):04x}" for letter in text)
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
