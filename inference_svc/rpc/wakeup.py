"""Lets other threads wake coroutines of the event loop."""

from __future__ import annotations

import asyncio
import threading


class Bell:
    """Wakes coroutines of the loop that made it: all that are called before the loop gets to it with one signal.

    A signal between threads costs more than all else about a token. The engine calls for every stream once a step, one
    right after the other, so a step is a signal.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._called: list[asyncio.Event] = []

    def call(self, event: asyncio.Event) -> None:
        """Set an event; from any thread."""
        with self._lock:
            self._called.append(event)
            is_first = len(self._called) == 1
        if is_first and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._set_all)

    def _set_all(self) -> None:
        with self._lock:
            called, self._called = self._called, []
        for event in called:
            event.set()


class Wakeup:
    """Lets another thread wake one coroutine."""

    def __init__(self, bell: Bell) -> None:
        self._bell = bell
        self._event = asyncio.Event()

    def call(self) -> None:
        """Wake the coroutine, or let its next wait return at once; from any thread."""
        self._bell.call(self._event)

    async def wait(self) -> None:
        """Return once `call` was called since the last return."""
        await self._event.wait()
        self._event.clear()
