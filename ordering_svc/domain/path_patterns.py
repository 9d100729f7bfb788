"""Regular expressions over module paths, as PEFT's config has them: what is asked of them, not how it is answered.

A pattern comes from a stranger, and Python's engine can take exponential time over it, so the domain does not run one
itself: whoever calls it hands in a matcher that is bounded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

MAX_PATTERN_LENGTH = 1024


@dataclass(frozen=True, slots=True)
class PathPattern:
    """One expression, and the field of the request that it came in."""

    field: str
    text: str
    before: str = ""  # what PEFT writes around the text
    after: str = ""
    is_whole: bool = True  # it has to match the whole path, not only its beginning

    @property
    def expression(self) -> str:
        """What is compiled."""
        return f"{self.before}{self.text}{self.after}"


class MatchesPaths(Protocol):
    """Answers for each pattern which paths it matches; the value is what its group `idx` caught, or None."""

    def __call__(self, patterns: Sequence[PathPattern], paths: Sequence[str]) -> Sequence[Mapping[str, str | None]]:
        """One mapping for each pattern. Raises PatternInvalid and PatternTooCostly."""
        ...
