"""What can be wrong with a model or adapter file.

WeightsError
├── FileMissing        it is not where the reference says
├── MalformedFile      it is truncated, lies about itself, or breaks its format
│   └── FileChanged    it changed while it was read
├── UnsupportedFile    it is valid, but of a kind that is not supported
├── NotEnoughMemory    it is valid, and does not fit into memory
├── PathNotAllowed     it lies outside the allowed roots
├── HubUnavailable     the hub cannot be reached, or does not let us have it
├── TooLarge           it is larger than a limit of the service
└── NoRoom             the disk has no room for it
"""

from __future__ import annotations


class WeightsError(Exception):
    """A file cannot be used; `path` names it."""

    def __init__(self, path: str, message: str) -> None:
        super().__init__(f"{path}: {message}")
        self.path = path
        self.sentence = message


class FileMissing(WeightsError):
    """It is not where the reference says."""


class MalformedFile(WeightsError):
    """It is truncated, lies about itself, or breaks its format."""


class FileChanged(MalformedFile):
    """It changed while it was read."""


class UnsupportedFile(WeightsError):
    """It is valid, but of a kind that is not supported."""


class NotEnoughMemory(WeightsError):
    """It is valid, and does not fit into memory."""


class PathNotAllowed(WeightsError):
    """It lies outside the allowed roots."""


class HubUnavailable(WeightsError):
    """The hub cannot be reached, or does not let us have it."""


class TooLarge(WeightsError):
    """It is larger than a limit of the service."""


class NoRoom(WeightsError):
    """The disk has no room for it."""
