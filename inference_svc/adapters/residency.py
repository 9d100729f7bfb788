"""What happens to resident adapters, as events: numbered, kept for a while, and handed to whoever watches."""

from __future__ import annotations

import re
import threading
import uuid
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum

from inference_svc.adapters.resident import ActiveSet, ResidentAdapter
from inference_svc.errors import InvalidRequest, WatcherTooSlow

HISTORY = 1024  # events that a watch can resume over
WATCHER_QUEUE = 256  # events that a watcher may leave unread

_TOKEN = re.compile(r"([0-9a-f]{32})\.(0|[1-9][0-9]{0,18})")


class ResidencyEventKind(Enum):
    """What happened."""

    LOADED = "loaded"
    REPLACED = "replaced"
    UNLOADED = "unloaded"
    EVICTED = "evicted"
    ACTIVATED = "activated"
    PINNED = "pinned"
    UNPINNED = "unpinned"


@dataclass(frozen=True, slots=True)
class ResidencyEvent:
    """One change of what is resident or active; either `adapter` or `active` is set."""

    kind: ResidencyEventKind
    generation: int  # grows by one with every event
    time: datetime  # UTC
    adapter: ResidentAdapter | None
    active: ActiveSet | None


@dataclass(frozen=True, slots=True)
class ResidencySnapshot:
    """What is resident and active after the event of this generation."""

    adapters: tuple[ResidentAdapter, ...]  # by name
    active: ActiveSet
    generation: int


@dataclass(frozen=True, slots=True)
class ResidencyUpdate:
    """What a watcher is told, and where it may resume."""

    content: ResidencySnapshot | ResidencyEvent
    resume_token: str


class ResidencyWatch:
    """The updates of one watcher, until it cancels."""

    def __init__(self, on_ready: Callable[[], None], on_cancel: Callable[[ResidencyWatch], None]) -> None:
        self._on_ready = on_ready
        self._on_cancel = on_cancel
        self._lock = threading.Lock()
        self._pending: list[ResidencyUpdate] = []
        self._is_over = False

    def put(self, update: ResidencyUpdate) -> None:
        """Append an update; a watcher that does not read loses what is pending, and is told so when it reads."""
        with self._lock:
            if self._is_over:
                return
            if len(self._pending) >= WATCHER_QUEUE:
                self._pending.clear()
                self._is_over = True
            else:
                self._pending.append(update)
        self._on_ready()

    def take(self) -> list[ResidencyUpdate]:
        """Everything that is pending; may be empty.

        Raises:
            WatcherTooSlow: more than WATCHER_QUEUE events were left unread.
        """
        with self._lock:
            if self._is_over:
                raise WatcherTooSlow(
                    f"more than {WATCHER_QUEUE} events were left unread: watch again with the last resume token",
                    limit=str(WATCHER_QUEUE),
                )
            pending, self._pending = self._pending, []
        return pending

    def cancel(self) -> None:
        """Watch no longer; any thread, any number of times."""
        self._on_cancel(self)


class ResidencyLog:
    """The events since the start; the registry calls every method under its lock."""

    def __init__(self) -> None:
        self._start = uuid.uuid4().hex  # tells tokens of another start apart
        self._generation = 0
        self._history: deque[ResidencyEvent] = deque(maxlen=HISTORY)
        self._watches: set[ResidencyWatch] = set()
        self.counts = dict.fromkeys(ResidencyEventKind, 0)  # since the start

    @property
    def generation(self) -> int:
        """The number of the last event."""
        return self._generation

    @property
    def num_watches(self) -> int:
        """How many watch now."""
        return len(self._watches)

    def record(
        self, kind: ResidencyEventKind, adapter: ResidentAdapter | None = None, active: ActiveSet | None = None
    ) -> None:
        """Number an event, keep it, and hand it to the watchers."""
        self._generation += 1
        self.counts[kind] += 1
        event = ResidencyEvent(kind, self._generation, datetime.now(UTC), adapter, active)
        self._history.append(event)
        for watch in self._watches:
            watch.put(self._update(event, event.generation))

    def watch(
        self,
        resume_token: str | None,
        snapshot: Callable[[], ResidencySnapshot],
        on_ready: Callable[[], None],
        on_cancel: Callable[[ResidencyWatch], None],
    ) -> ResidencyWatch:
        """Begin a watch: with the events since the token if they are all still here, else with a snapshot.

        Raises:
            InvalidRequest: the token is not one of ours.
        """
        since = self._events_since(resume_token) if resume_token is not None else None
        watch = ResidencyWatch(on_ready, on_cancel)
        if since is None or len(since) > WATCHER_QUEUE:
            watch.put(self._update(snapshot(), self._generation))
        else:
            for event in since:
                watch.put(self._update(event, event.generation))
        self._watches.add(watch)
        return watch

    def end(self, watch: ResidencyWatch) -> None:
        """Forget a watch."""
        self._watches.discard(watch)

    def _update(self, content: ResidencySnapshot | ResidencyEvent, generation: int) -> ResidencyUpdate:
        return ResidencyUpdate(content, f"{self._start}.{generation}")

    def _events_since(self, token: str) -> list[ResidencyEvent] | None:
        """None: they are no longer all here, or the token is of another start."""
        match = _TOKEN.fullmatch(token)
        if match is None:
            raise InvalidRequest(
                "resume_token", f"{token[:140]!r} is not a resume token that WatchAdapters gave out", token=token[:140]
            )
        start, generation = match[1], int(match[2])
        if start != self._start or not self._generation - len(self._history) <= generation <= self._generation:
            return None
        return [event for event in self._history if event.generation > generation]
