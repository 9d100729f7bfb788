"""The threads that adapters are loaded in: few, of low priority, and never the engine's or the event loop's.

Priority alone does not keep a load out of the way: the threads of a step wait for each other many times, and whenever
the system lets a load have one of their cores, it does so for some milliseconds, as long as a whole step. So while the
engine has work, loads do theirs in slices shorter than that, and rest between them.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from torch.overrides import TorchFunctionMode

from inference_svc.errors import LimitReached

NUM_THREADS = 4  # a slow download holds up one of them
MAX_WAITING = 64
NICENESS = 10
SLICE_SECONDS = 0.001  # of computing, between two rests
SHARE = 0.25  # of one core's time that all loads together take while the engine has work

Value = TypeVar("Value")


class LoadingThreads:
    """Runs loads beside the engine; call it from one event loop."""

    def __init__(self, engine_has_work: Callable[[], bool] = lambda: False) -> None:
        """`engine_has_work` is asked often, in the threads that load."""
        self._engine_has_work = engine_has_work
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
        future = asyncio.get_running_loop().run_in_executor(self._executor, self._run_in_slices, load)
        future.add_done_callback(self._finish)
        return await asyncio.shield(future)

    def _run_in_slices(self, load: Callable[[], Value]) -> Value:
        with _Slices(self._seconds_to_rest):
            return load()

    def _seconds_to_rest(self, worked: float) -> float:
        if not self._engine_has_work():
            return 0.0
        return worked * (min(self._unfinished, NUM_THREADS) / SHARE - 1)

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


class _Slices(TorchFunctionMode):
    """Rests, at calls of torch, whenever this thread has computed for a slice: loading is thousands of short calls."""

    def __init__(self, seconds_to_rest: Callable[[float], float]) -> None:
        super().__init__()
        self._seconds_to_rest = seconds_to_rest
        self._began = time.thread_time()

    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        worked = time.thread_time() - self._began
        if worked >= SLICE_SECONDS:
            if rest := self._seconds_to_rest(worked):
                time.sleep(rest)
            self._began = time.thread_time()
        return func(*args, **(kwargs or {}))
