"""The last fetched copy of every ordering, on disk: what a start falls back on while the ordering service is away."""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from google.protobuf import json_format

from loramux.ordering.v1 import ordering_pb2


class UnreadableCopyError(Exception):
    """A stored copy is there but broken."""


@dataclass(frozen=True, slots=True)
class OrderingCopy:
    """An ordering as it was at some time."""

    ordering: ordering_pb2.Ordering
    fetched_at: datetime


class OrderingCopies:
    """A folder with one JSON file for each reference (`demo`, `demo@3`) that was ever fetched."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def keep(self, reference: str, ordering: ordering_pb2.Ordering) -> None:
        """Replace the copy of a reference, all at once.

        Raises:
            OSError: the folder cannot be written.
        """
        content = {
            "fetched_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "ordering": json_format.MessageToDict(ordering),
        }
        self._folder.mkdir(parents=True, exist_ok=True)
        write_atomically(self._path(reference), json.dumps(content, indent=1))

    def last(self, reference: str) -> OrderingCopy | None:
        """The copy of a reference, if it was ever fetched.

        Raises:
            UnreadableCopyError: the file is broken.
        """
        path = self._path(reference)
        try:
            content = json.loads(path.read_bytes())
            ordering = json_format.ParseDict(content["ordering"], ordering_pb2.Ordering(), ignore_unknown_fields=True)
            return OrderingCopy(ordering, datetime.fromisoformat(content["fetched_at"]))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, LookupError, RecursionError, json_format.ParseError) as error:
            raise UnreadableCopyError(f"the stored copy {path} cannot be read ({error}): delete it") from None

    def _path(self, reference: str) -> Path:
        return self._folder / f"{reference}.json"


def write_atomically(path: Path, text: str) -> None:
    """Write a file so that a reader sees all of it or nothing, even after a crash.

    Raises:
        OSError: the folder cannot be written.
    """
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
