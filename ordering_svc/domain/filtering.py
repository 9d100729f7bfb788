"""What a filter means: a tree of comparisons, and whether an ordering passes it."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from ordering_svc.domain.ordering import Ordering


class Field(Enum):
    """What a comparison can look at."""

    ORDERING_ID = "ordering_id"
    KIND = "kind"
    BASE_MODEL_ID = "base_model_id"
    ADAPTER_MODEL_ID = "adapter_model_id"
    DESCRIPTION = "description"
    LABEL = "labels"
    CREATE_TIME = "create_time"
    UPDATE_TIME = "update_time"
    REVISION_NUMBER = "revision_number"


class Operator(Enum):
    """How a comparison compares; texts in the order of their code points."""

    EQUAL = "="
    NOT_EQUAL = "!="
    LESS = "<"
    AT_MOST = "<="
    GREATER = ">"
    AT_LEAST = ">="
    HAS = ":"  # a text contains another; labels have a key


@dataclass(frozen=True, slots=True)
class Comparison:
    """One field against one value; times are microseconds since 1970.

    Of LABEL, `key` says which. A label that is not there passes no comparison, not even NOT_EQUAL.
    """

    field: Field
    operator: Operator
    value: str | int
    key: str | None = None  # None with LABEL and HAS: the value is the key


@dataclass(frozen=True, slots=True)
class Negation:
    """Passes what the part does not."""

    part: Filter


@dataclass(frozen=True, slots=True)
class Conjunction:
    """Passes what all parts pass."""

    parts: tuple[Filter, ...]


@dataclass(frozen=True, slots=True)
class Disjunction:
    """Passes what any part passes."""

    parts: tuple[Filter, ...]


Filter = Comparison | Negation | Conjunction | Disjunction

COMPARE: Mapping[Operator, Callable[[Any, Any], Any]] = {
    Operator.EQUAL: operator.eq,
    Operator.NOT_EQUAL: operator.ne,
    Operator.LESS: operator.lt,
    Operator.AT_MOST: operator.le,
    Operator.GREATER: operator.gt,
    Operator.AT_LEAST: operator.ge,
}


def passes(ordering: Ordering, wanted: Filter) -> bool:
    """The ordering, as its newest revision shows it, is one that the filter asks for."""
    match wanted:
        case Conjunction(parts):
            return all(passes(ordering, part) for part in parts)
        case Disjunction(parts):
            return any(passes(ordering, part) for part in parts)
        case Negation(part):
            return not passes(ordering, part)
        case Comparison():
            return _holds(ordering, wanted)


def _holds(ordering: Ordering, comparison: Comparison) -> bool:
    if comparison.field is Field.LABEL and comparison.key is None:
        return comparison.value in ordering.metadata.labels
    value = _value(ordering, comparison)
    if value is None:
        return False
    if comparison.operator is Operator.HAS:
        return str(comparison.value) in str(value)
    return bool(COMPARE[comparison.operator](value, comparison.value))


def _value(ordering: Ordering, comparison: Comparison) -> str | int | None:
    metadata = ordering.metadata
    match comparison.field:
        case Field.ORDERING_ID:
            return ordering.ordering_id
        case Field.KIND:
            return metadata.kind.value
        case Field.BASE_MODEL_ID:
            return ordering.revision.base_model_id
        case Field.ADAPTER_MODEL_ID:
            return metadata.adapter_model_id
        case Field.DESCRIPTION:
            return metadata.description
        case Field.LABEL:
            return metadata.labels.get(comparison.key or "")
        case Field.CREATE_TIME:
            return ordering.create_time_us
        case Field.UPDATE_TIME:
            return ordering.revision.create_time_us
        case Field.REVISION_NUMBER:
            return ordering.revision.number
