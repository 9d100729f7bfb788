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
        self._pending_since: float | None = None
        self._cancelled = False

    @property
    def is_cancelled(self) -> bool:
        """The reader has gone away."""
        return self._cancelled

    def cancel(self) -> None:
        """Stop the request at the next step. Any thread; any number of times."""
        self._cancelled = True

    def put(self, event: Event) -> None:
        """Append an event and wake the reader. The engine's side."""
        with self._lock:
            if not self._pending:
                self._pending_since = time.monotonic()
            self._pending.append(event)
        self._on_ready()

    def take(self) -> list[Event]:
        """All pending events, consecutive outputs joined into one; may be empty. The reader's side."""
        with self._lock:
            pending, self._pending = self._pending, []
            self._pending_since = None
        events: list[Event] = []
        for event in pending:
            if isinstance(event, Output) and events and isinstance(events[-1], Output):
                events[-1] = events[-1].joined_with(event)
            else:
                events.append(event)
        return events

    def seconds_unread(self) -> float:
        """How long the oldest pending event has waited."""
        since = self._pending_since
        return 0.0 if since is None else time.monotonic() - since
