"""Opens files beside a document, and says why one cannot be read in words that name no folder of this machine."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from ordering_svc.allowed_roots import AllowedRoots
from ordering_svc.domain.headers import FaultKind, FileFault


class UnreadableFile(Exception):
    """A file that cannot be read; `fault` says why."""

    def __init__(self, kind: FaultKind, file: str, message: str) -> None:
        super().__init__(message)
        self.fault = FileFault(kind, file, message)


def malformed(file: str, message: str) -> UnreadableFile:
    """The file is not what its name says."""
    return UnreadableFile(FaultKind.MALFORMED, file, f"{file} is malformed: {message}.")


@contextmanager
def opened(path: Path, file: str, roots: AllowedRoots) -> Iterator[tuple[BinaryIO, int]]:
    """A regular file inside the roots, and its size; `file` is how messages call it.

    Raises:
        UnreadableFile: it is not there, is no regular file, or is a link to outside the roots.
    """
    try:
        if not roots.contains(path.resolve()):
            raise UnreadableFile(FaultKind.OUTSIDE, file, f"{file} is a link to outside the folders that may be read.")
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe would block the open: look first
            raise malformed(file, "it is not a regular file")
        with path.open("rb") as content:
            yield content, os.fstat(content.fileno()).st_size
    except (FileNotFoundError, NotADirectoryError):
        raise UnreadableFile(FaultKind.MISSING, file, f"There is no {file}.") from None
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links
        reason = getattr(error, "strerror", None) or "links in a loop"
        raise UnreadableFile(FaultKind.MISSING, file, f"{file} cannot be read: {reason}.") from None
