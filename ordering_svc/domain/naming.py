"""Resource names: ordering ids, and `orderings/{ordering}[@{revision}]`."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ordering_svc.errors import InvalidName

ORDERING_ID = re.compile(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?")
REVISION_NUMBER = re.compile(r"[1-9][0-9]{0,17}")
REVISION_ID_PREFIX = re.compile(r"[0-9a-f]{6,16}")
TAG = re.compile(r"(?![0-9a-f]{6,}$)[a-z]([a-z0-9-]{0,61}[a-z0-9])?")  # nothing that could be a number or an id
COLLECTION = "orderings/"


@dataclass(frozen=True, slots=True)
class RevisionSelector:
    """Which revision a name means: its number, the first digits of its id (digits alone can be both), or a tag."""

    text: str

    @property
    def number(self) -> int | None:
        """The revision number that the text is, if it is one."""
        return int(self.text) if REVISION_NUMBER.fullmatch(self.text) else None

    @property
    def id_prefix(self) -> str | None:
        """The beginning of a revision id that the text is, if it is one."""
        return self.text if REVISION_ID_PREFIX.fullmatch(self.text) else None

    @property
    def tag(self) -> str | None:
        """The tag that the text is, if it is one."""
        return self.text if TAG.fullmatch(self.text) else None


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
    return OrderingName(ordering_id, parse_selector(revision, "name"))


def parse_selector(text: str, field: str = "revision") -> RevisionSelector:
    """Which revision the text means.

    Raises:
        InvalidName: it can be neither a number, nor the start of an id, nor a tag.
    """
    selector = RevisionSelector(text)
    if selector.number is None and selector.id_prefix is None and selector.tag is None:
        raise InvalidName(
            field,
            f"{text!r} is not a revision: write its number (1 is the first), 6 to 16 hex digits of its id, or a tag",
        )
    return selector


def checked_tag(tag: str, field: str = "tag") -> str:
    """The tag itself.

    Raises:
        InvalidName: it does not have the form of a tag, or could be taken for the id of a revision.
    """
    if not TAG.fullmatch(tag):
        raise InvalidName(
            field,
            f"{tag!r} is not a tag: write a lower-case letter, then at most 62 lower-case letters, digits or hyphens,"
            " without a hyphen at the end, and not six or more hex digits only, which could be the id of a revision",
        )
    return tag
