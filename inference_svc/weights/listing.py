"""The files of a model or an adapter, wherever they lie: in a folder, in the cache of a hub, or on the hub."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from inference_svc.weights.errors import FileMissing


class Listing(Protocol):
    """What there is, before anything large is read."""

    @property
    def name(self) -> str:
        """What messages call it: a path, or `org/name@revision`."""
        ...

    @property
    def holder(self) -> str:
        """What holds the files, in words: `the folder`, `the repository`."""
        ...

    @property
    def sizes(self) -> Mapping[str, int]:
        """Bytes of each file, by its path with `/` between folders."""
        ...

    def reference(self, file: str) -> str:
        """What a user writes to name one of the files."""
        ...

    def fetch(self, file: str) -> Path:
        """The local path of a small file, a configuration for instance.

        Raises:
            WeightsError: it cannot be had, or is not small.
        """
        ...


class FolderListing:
    """The files at the top of a local folder."""

    holder = "the folder"

    def __init__(self, path: Path) -> None:
        """Look at the folder once.

        Raises:
            FileMissing: it cannot be read.
        """
        self.name = str(path)
        self._path = path
        self.sizes: dict[str, int] = {}
        try:
            with os.scandir(path) as entries:
                for entry in sorted(entries, key=lambda entry: entry.name):
                    if entry.is_file():
                        self.sizes[entry.name] = entry.stat().st_size
        except OSError as error:
            raise FileMissing(str(path), f"cannot be read: {error.strerror}") from error

    def reference(self, file: str) -> str:
        """Its path."""
        return str(self._path / file)

    def fetch(self, file: str) -> Path:
        """Its path."""
        return self._path / file


def size_text(nbytes: int) -> str:
    """Bytes for people: `812 B`, `1.5 MiB`."""
    if nbytes < 1024:
        return f"{nbytes} B"
    amount = float(nbytes)
    for unit in ("KiB", "MiB", "GiB", "TiB"):
        amount /= 1024
        if amount < 1023.95 or unit == "TiB":
            break
    return f"{amount:.1f} {unit}"
