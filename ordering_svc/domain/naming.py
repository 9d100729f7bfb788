"""Resource names: ordering ids, and `orderings/{ordering}[@{revision}]`."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ordering_svc.errors import InvalidName

ORDERING_ID = re.compile(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?")
REVISION_NUMBER = re.compile(r"[1-9][0-9]{0,17}")
REVISION_ID_PREFIX = re.compile(r"[0-9a-f]{6,16}")
COLLECTION = "orderings/"


@dataclass(frozen=True, slots=True)
class RevisionSelector:
    """Which revision a name means: its number, or the first digits of its id (a short run of digits can be both)."""

    text: str

    @property
    def number(self) -> int | None:
        """The revision number that the text is, if it is one."""
        return int(self.text) if REVISION_NUMBER.fullmatch(self.text) else None

    @property
    def id_prefix(self) -> str | None:
        """The beginning of a revision id that the text is, if it is one."""
        return self.text if REVISION_ID_PREFIX.fullmatch(self.text) else None


@dataclass(frozen=True, slots=True)
class OrderingName:
    """A parsed resource name; no revision means the newest."""

    ordering_id: str
    revision: RevisionSelector | None = None


def resource_name(ordering_id: str) -> str:
    """`orderings/{ordering}`."""
    return f"{COLLECTION}{ordering_id}"


def checked_ordering_id(ordering_id: str, field: str = "ordering_id") -> str:
    """The id itself.

    Raises:
        InvalidName: it does not have the form of an id.
    """
    if not ORDERING_ID.fullmatch(ordering_id):
        raise InvalidName(
            field,
            f"{ordering_id!r} is not an ordering id: write a lower-case letter, then at most 62 lower-case letters,"
            " digits or hyphens, without a hyphen at the end",
        )
    return ordering_id


def parse_name(name: str, *, may_have_revision: bool) -> OrderingName:
    """Parse `orderings/{ordering}`, or with `@{revision}` where that is allowed.

    Raises:
        InvalidName: the name is malformed, or has a revision where none is allowed.
    """
    if not name.startswith(COLLECTION):
        raise InvalidName("name", f"{name!r} is not the name of an ordering: write orderings/ID")
    ordering_id, at, revision = name.removeprefix(COLLECTION).partition("@")
    checked_ordering_id(ordering_id, "name")
    if not at:
        return OrderingName(ordering_id)
    if not may_have_revision:
        raise InvalidName(
            "name", f"{name!r} names a revision, but only a whole ordering can be meant: drop @{revision}"
        )
    selector = RevisionSelector(revision)
    if selector.number is None and selector.id_prefix is None:
        raise InvalidName(
            "name",
            f"{revision!r} in {name!r} is not a revision: write its number (1 is the first), or 6 to 16 hex digits of"
            " its id",
        )
    return OrderingName(ordering_id, selector)
