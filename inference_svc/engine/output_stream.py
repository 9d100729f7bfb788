"""The way of an answer from the engine thread to whoever reads it: filled once a step, drained at the reader's pace."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from inference_svc.engine.request import Event, Output


class OutputStream:
    """Events of one request. The engine never waits for the reader: what is not read yet is joined."""

    def __init__(self, request_id: str, on_ready: Callable[[], None]) -> None:
        self.request_id = request_id
        self._on_ready = on_ready
        self._lock = threading.Lock()
        self._pending: list[Event] = []
        self.pending_since: float | None = None  # time.monotonic of the oldest event that was not taken yet
        self.is_cancelled = False  # the reader has gone away

    def cancel(self) -> None:
        """Stop the request at the next step. Any thread; any number of times."""
        self.is_cancelled = True

    def put(self, event: Event) -> None:
        """Append an event; the reader hears of it when it is announced. The engine's side."""
        with self._lock:
            if not self._pending:
                self.pending_since = time.monotonic()
            self._pending.append(event)

    def excuse_reader(self) -> None:
        """What is pending counts as put only now. The engine's side."""
        with self._lock:
            if self._pending:
                self.pending_since = time.monotonic()

    def announce(self) -> None:
        """Wake the reader. The engine's side."""
        self._on_ready()

    def take(self) -> list[Event]:
        """All pending events, consecutive outputs joined into one; may be empty. The reader's side."""
        with self._lock:
            pending, self._pending = self._pending, []
            self.pending_since = None
        events: list[Event] = []
        for event in pending:
            if isinstance(event, Output) and events and isinstance(events[-1], Output):
                events[-1] = events[-1].joined_with(event)
            else:
                events.append(event)
        return events
