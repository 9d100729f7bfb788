"""The orders that lists of orderings can have."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from ordering_svc.domain.ordering import Ordering
from ordering_svc.errors import InvalidValue


class SortField(Enum):
    """What orderings are sorted by; equal ones by id."""

    ORDERING_ID = "ordering_id"
    CREATE_TIME = "create_time"
    UPDATE_TIME = "update_time"


@dataclass(frozen=True, slots=True)
class SortOrder:
    """A field and a direction."""

    field: SortField
    is_descending: bool = False

    def key_of(self, ordering: Ordering) -> tuple[str | int, ...]:
        """Where the ordering stands: no two have the same key."""
        match self.field:
            case SortField.ORDERING_ID:
                return (ordering.ordering_id,)
            case SortField.CREATE_TIME:
                return (ordering.create_time_us, ordering.ordering_id)
            case SortField.UPDATE_TIME:
                return (ordering.revision.create_time_us, ordering.ordering_id)


BY_ID = SortOrder(SortField.ORDERING_ID)


def parse_order_by(text: str) -> SortOrder:
    """The order that `order_by` asks for; nothing means by id.

    Raises:
        InvalidValue: it names no field of ours, several, or another direction.
    """
    words = text.split()
    if not words:
        return BY_ID
    names = [field.value for field in SortField]
    if words[0] not in names or len(words) > 2 or (len(words) == 2 and words[1] not in ("asc", "desc")):
        raise InvalidValue(
            "order_by", f"{text!r} is no order: write one of {', '.join(names)}, and ` desc` to reverse it"
        )
    return SortOrder(SortField(words[0]), words[-1] == "desc")
