"""Reads the changes of orderings, without any I/O: what both clients feed their watch streams into."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Sequence

from loramux.client.errors import Failure, LoramuxError, Unavailable, invalid_argument
from loramux.client.ordering_history import OrderingChange, change_from_proto
from loramux.client.orderings import ordering_resource
from loramux.ordering.v1 import ordering_service_pb2

FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 5.0

OnOutage = Callable[[LoramuxError], object]
"""Told once of every loss of the service."""


class ChangeReader:
    """Takes the messages of a watch, over as many streams as it needs, and gives each change out once, in order.

    A service that was never reached is an error at once. One that was is waited for, `max_outage_s` seconds at most.
    """

    def __init__(
        self,
        names: Sequence[str] = (),
        after: int | None = None,
        *,
        max_outage_s: float = math.inf,
        on_outage: OnOutage | None = None,
    ) -> None:
        if isinstance(names, str):
            raise invalid_argument("names", f"is the string {names!r}: give a list of names")
        self._names = tuple(map(ordering_resource, names))
        self._after = after
        self._received = after
        self._waiting: deque[OrderingChange] = deque()
        self._reached = False
        self._max_outage_s = max_outage_s
        self._on_outage = on_outage
        self._lost_at: float | None = None
        self._pause_s = FIRST_PAUSE_S

    @property
    def reached(self) -> bool:
        """True once the service has said from where it sends."""
        return self._reached

    @property
    def sequence(self) -> int | None:
        """Everything up to here was given out: to resume later, watch after this. None before the service answered."""
        return self._after

    def request(self) -> ordering_service_pb2.WatchOrderingsRequest:
        """The request for what was not received yet."""
        return ordering_service_pb2.WatchOrderingsRequest(after_sequence=self._received, names=self._names)

    def feed(self, response: ordering_service_pb2.WatchOrderingsResponse) -> None:
        """Takes one message."""
        self._reached = True
        self._lost_at = None
        self._pause_s = FIRST_PAUSE_S
        for message in response.changes:
            if self._received is None or message.sequence > self._received:
                self._waiting.append(change_from_proto(message))
                self._received = message.sequence
        self._received = max(response.sequence, self._received or 0)
        if not self._waiting:
            self._after = self._received

    def take(self) -> OrderingChange | None:
        """The next change, if one was received."""
        if not self._waiting:
            return None
        change = self._waiting.popleft()
        self._after = change.sequence if self._waiting else self._received
        return change

    def pause_after(self, error: LoramuxError | None) -> float:
        """Seconds to wait before the next stream, after one was lost: to an error, or because it ended.

        Raises the error if a new stream makes no sense.
        """
        error = error or Unavailable(Failure("UNAVAILABLE", "the service ended the stream of changes", "STREAM_ENDED"))
        if not (isinstance(error, Unavailable) and self._reached):
            raise error
        now = time.monotonic()
        if self._lost_at is None:
            self._lost_at = now
            if self._on_outage is not None:
                self._on_outage(error)
        elif now - self._lost_at > self._max_outage_s:
            raise error
        pause, self._pause_s = self._pause_s, min(2 * self._pause_s, LONGEST_PAUSE_S)
        return pause
