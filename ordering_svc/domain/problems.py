"""What is wrong with a document: one finding each, with a stable code, a place, a sentence and what to do."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum

from ordering_svc.domain.problem_codes import CODES

SHOWN_CHARACTERS = 120


class Severity(Enum):
    """How bad a problem is."""

    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True, slots=True)
class Problem:
    """One finding of a validation."""

    code: str  # stable, upper-case: a key of CODES
    field: str  # path into the document, for instance `layers["lm_head"]`; empty: the whole file
    message: str  # one sentence: the offending name and value
    severity: Severity = Severity.ERROR
    # Place inside its top-level key: findings are sorted by it. Of the whole file: the character where reading ended.
    entry: int = dataclasses.field(default=0, compare=False)
    file: str = ""  # the file beside the document that shows it, for instance `math/adapter_config.json`

    @property
    def is_error(self) -> bool:
        """The ordering cannot work with it."""
        return self.severity is Severity.ERROR

    @property
    def hint(self) -> str:
        """What to do about it: one or two sentences."""
        return CODES[self.code].hint


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
    if text.isprintable():
        return text
    text = "".join(letter if letter.isprintable() else f"\\u{ord(letter):04x}" for letter in text)
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
