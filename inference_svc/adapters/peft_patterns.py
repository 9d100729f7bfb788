"""PEFT's `rank_pattern` and `alpha_pattern`: regular expressions over module paths, from untrusted files."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

MAX_PATTERNS = 1024
MAX_PATTERN_LENGTH = 2048
# `re` has no time limit and holds the interpreter while it searches, so patterns that can take long are refused. The
# worst patterns of this cost take 15 ms on a path of 64 characters: found by trying, as are the weights of the parts.
MAX_PATTERN_COST = 2_500_000  # of all patterns together
_COST_OF_REPETITION = 64
_COST_OF_OPTION = 3
_POWER_OF_ALTERNATIVES = 1.5


class PatternError(ValueError):
    """The pattern is not a regular expression, or one that could take very long."""


@dataclass(frozen=True, slots=True)
class ModulePatterns:
    """Values by pattern; the first pattern that matches a module path wins, as in PEFT."""

    entries: tuple[tuple[re.Pattern[str], float], ...] = ()

    def value_for(self, path: str, default: float) -> float:
        """The value for a module path. Source: `get_pattern_key` of PEFT."""
        for pattern, value in self.entries:
            if pattern.match(path):
                return value
        return default


def compile_patterns(values: Mapping[str, float]) -> ModulePatterns:
    """Compile patterns in file order.

    Raises:
        PatternError: naming the pattern.
    """
    check_patterns(values)
    return ModulePatterns(tuple((_compiled(key), value) for key, value in values.items()))


def check_patterns(keys: Iterable[str]) -> None:
    """Refuse what is not a regular expression, one that could take very long, and more than there can be a use for.

    Raises:
        PatternError: naming the pattern.
    """
    cost = 0.0
    for count, key in enumerate(keys, 1):
        if count > MAX_PATTERNS:
            raise PatternError(f"there are more than {MAX_PATTERNS} patterns")
        if len(key) > MAX_PATTERN_LENGTH:
            raise PatternError(f"pattern {key[:60]!r}... is longer than {MAX_PATTERN_LENGTH} characters")
        cost += pattern_cost(key)
        if cost > MAX_PATTERN_COST:
            raise PatternError(f"pattern {key[:100]!r} could take very long to match: use fewer repetitions")
        _compiled(key)


def _compiled(key: str) -> re.Pattern[str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # "possible nested set" means that the author's intent is unclear
            return re.compile(rf"(.*\.)?({key})$")
    except (re.error, Warning, RecursionError, OverflowError) as error:
        raise PatternError(f"pattern {key[:100]!r} is not a regular expression: {error}") from error


def pattern_cost(key: str) -> float:
    """Grows with the ways in which a module path can be tried; infinite repetition of groups is refused.

    Raises:
        PatternError: a construct that cannot be bounded (look-around, back-reference, repeated group).
    """
    cost = 1.0
    alternatives = [1]
    i = 0
    while i < len(key):
        char = key[i]
        if char == "\\":
            if key[i + 1 : i + 2].isdigit():
                raise PatternError(f"pattern {key[:100]!r} has a back-reference, which is not supported")
            i += 1
        elif char == "[":
            i = _end_of_class(key, i)
        elif char == "(":
            if key.startswith("(?", i) and not key.startswith("(?:", i):
                raise PatternError(f"pattern {key[:100]!r} has `{key[i : i + 3]}`, which is not supported")
            i += 2 if key.startswith("(?", i) else 0
            alternatives.append(1)
        elif char == "|":
            alternatives[-1] += 1
        elif char == ")":
            if key[i + 1 : i + 2] in tuple("*+{"):
                raise PatternError(f"pattern {key[:100]!r} repeats a group, which could take very long to match")
            cost *= (alternatives.pop() if len(alternatives) > 1 else 1) ** _POWER_OF_ALTERNATIVES
        elif char in "*+{":
            cost *= _COST_OF_REPETITION
        elif char == "?":
            cost *= _COST_OF_OPTION
        i += 1
    for count in alternatives:
        cost *= count**_POWER_OF_ALTERNATIVES
    return cost


def _end_of_class(key: str, start: int) -> int:
    """The index of the `]` that closes a character class, or the last index if none does."""
    i = start + 1
    if key[i : i + 1] == "^":
        i += 1
    if key[i : i + 1] == "]":
        i += 1
    while i < len(key) and key[i] != "]":
        i += 2 if key[i] == "\\" else 1
    return i
