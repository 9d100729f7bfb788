"""Files that are there wholly or not at all."""

from __future__ import annotations

import os
import shutil
import uuid
from pathlib import Path


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file so that whoever reads it, also after a crash, finds all of it, or what was there before.

    A link is followed; what is no regular file, such as a pipe or a terminal, is written to directly. Raises OSError.
    """
    target = path.resolve()
    if target.exists() and not target.is_file():
        target.write_bytes(content)
        return
    beside = target.with_name(f".{uuid.uuid4().hex}.part")
    try:
        with beside.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if target.exists():
            shutil.copymode(target, beside)
        beside.replace(target)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
