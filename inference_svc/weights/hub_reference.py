"""What a hub id says; the hub's own library, which takes long to import, is not needed for that."""

from __future__ import annotations

import re
from dataclasses import dataclass

_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?"
_REFERENCE = re.compile(
    rf"(?P<repository>{_NAME}/{_NAME})(?:@(?P<revision>[A-Za-z0-9][A-Za-z0-9._/-]{{0,199}}))?(?::(?P<file>[^\0:]{{1,400}}))?"
)


@dataclass(frozen=True, slots=True)
class HubReference:
    """`org/name[@revision][:file]`"""

    repository: str
    revision: str | None
    file: str | None

    def __str__(self) -> str:
        return self.place + (f":{self.file}" if self.file else "")

    @property
    def place(self) -> str:
        """`org/name[@revision]`"""
        return self.repository + (f"@{self.revision}" if self.revision else "")


def parse_hub_reference(text: str) -> HubReference | None:
    """None if the text does not have the form; names that climb (`..`) do not."""
    match = _REFERENCE.fullmatch(text)
    if match is None:
        return None
    repository, revision, file = match["repository"], match["revision"], match["file"]
    if any(mark in repository for mark in ("..", "--")) or repository.endswith(".git"):
        return None
    if revision is not None and not is_plain(revision):
        return None
    if file is not None and not is_plain(file):
        return None
    return HubReference(repository, revision, file)


def is_plain(path: str) -> bool:
    """Relative, and does not climb."""
    return all(part not in ("", ".", "..") for part in path.split("/")) and "\\" not in path
