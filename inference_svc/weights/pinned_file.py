"""A model file that stays the one it was when it was opened, or says that it is not.

The file is held open, so that a new file of its name, or none, changes nothing for who still reads the old one. It is
read by position and never mapped: of a mapping that has become longer than its file, the first touch ends the process
(SIGBUS), a read that comes up short is an error like others. What was written into it since is told by its size and
its time of change, which are looked at after every read.
"""

from __future__ import annotations

import os
import stat
import weakref
from pathlib import Path
from typing import BinaryIO

from inference_svc.weights.errors import FileChanged, FileMissing

MAX_READ = 1 << 30  # of one call; Linux reads no more than 2 GiB at once


class PinnedFile:
    """An open file; it is closed when nobody holds it any more. Any thread may read."""

    def __init__(self, path: Path) -> None:
        """Open the file.

        Raises:
            FileMissing: there is no such file, or it cannot be read.
        """
        self.path = path
        try:
            # A pipe would block the open: look first.
            if not stat.S_ISREG(path.stat().st_mode):
                raise FileMissing(str(path), "is not a file")
            self._descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        except (OSError, ValueError) as error:  # ValueError: a name that no file can have
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise FileMissing(str(path), f"cannot be read: {reason}") from error
        weakref.finalize(self, os.close, self._descriptor)
        self._identity = self._look()
        self.size = self._identity[0]

    def read_into(self, offset: int, buffer: memoryview, what: str) -> None:
        """Fill writable bytes from a position on; `what` is what an error calls them.

        Raises:
            FileMissing: the file cannot be read.
            FileChanged: it is shorter by now, or was written to since it was opened.
        """
        done = 0
        try:
            while done < len(buffer):
                count = os.preadv(self._descriptor, [buffer[done : done + MAX_READ]], offset + done)
                if count == 0:
                    raise FileChanged(str(self.path), f"{what} is cut off: the file changed while it was read")
                done += count
            identity = self._look()
        except OSError as error:
            raise FileMissing(str(self.path), f"cannot be read: {error.strerror}") from error
        if identity != self._identity:
            raise FileChanged(
                str(self.path), f"{what} cannot be trusted: the file was written to while it was in use; start again"
            )

    def stream(self) -> BinaryIO:
        """The file from its start, to be closed by the caller."""
        stream = os.fdopen(os.dup(self._descriptor), "rb")
        stream.seek(0)
        return stream

    def _look(self) -> tuple[int, int]:
        status = os.fstat(self._descriptor)
        return status.st_size, status.st_mtime_ns
