"""The threads that adapters are loaded in: few, of low priority, and never the engine's or the event loop's."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from inference_svc.errors import LimitReached

NUM_THREADS = 4  # a slow download holds up one of them
MAX_WAITING = 64
NICENESS = 10

Value = TypeVar("Value")


class LoadingThreads:
    """Runs loads beside the engine; call it from one event loop."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(NUM_THREADS, "adapter-loading", initializer=_give_way)
        self._unfinished = 0

    async def run(self, load: Callable[[], Value]) -> Value:
        """Run a load and wait for it; a caller that gives up does not stop it.

        Raises:
            LimitReached: too many are waiting.
        """
        if self._unfinished >= NUM_THREADS + MAX_WAITING:
            raise LimitReached(
                f"{MAX_WAITING} loads are waiting, the most allowed: try again later", limit=str(MAX_WAITING)
            )
        self._unfinished += 1
        future = asyncio.get_running_loop().run_in_executor(self._executor, load)
        future.add_done_callback(self._finish)
        return await asyncio.shield(future)

    def _finish(self, future: asyncio.Future[Value]) -> None:
        self._unfinished -= 1
        if not future.cancelled():
            future.exception()  # seen, even if the caller is gone

    def close(self) -> None:
        """Drop what waits; what runs ends by itself."""
        self._executor.shutdown(wait=False, cancel_futures=True)


def _give_way() -> None:
    """Lower this thread's priority: Linux knows it by thread, and so do the threads that torch starts from it."""
    if sys.platform == "linux":
        # From where the service itself stands: to be raised above that a thread has no right, nor should it be.
        thread = threading.get_native_id()
        os.setpriority(os.PRIO_PROCESS, thread, min(19, os.getpriority(os.PRIO_PROCESS, thread) + NICENESS))
