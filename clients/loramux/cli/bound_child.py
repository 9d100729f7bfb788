"""Becomes another program that the kernel kills when its parent dies.

Use: `python -m loramux.cli.bound_child PARENT_PID PROGRAM ...`. Asking before `exec` keeps Python code out of the fork
of a process that runs gRPC threads.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Sequence

_PR_SET_PDEATHSIG = 1


def become(parent: int, program: Sequence[str]) -> None:
    """Ties this process to `parent` (on Linux; elsewhere it only runs the program) and becomes the program."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
        if os.getppid() != parent:  # it died before we asked
            sys.exit(1)
    os.execv(program[0], list(program))


if __name__ == "__main__":
    become(int(sys.argv[1]), sys.argv[2:])
