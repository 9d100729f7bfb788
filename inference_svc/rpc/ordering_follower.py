"""Follows orderings: a new revision or a moved tag is applied as soon as the ordering service tells of it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC, datetime

import structlog

from inference_svc.errors import InferenceError
from inference_svc.rpc.ordering_client import WatchedOrderingSource
from inference_svc.rpc.ordering_desk import OrderingDesk
from inference_svc.rpc.ports import FollowedOrdering
from inference_svc.rpc.translation import as_inference_error

BACKOFF_SECONDS = (1.0, 2.0, 5.0, 10.0, 30.0)

_log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _State:
    """How following one ordering goes."""

    reference: str  # `{id}` or `{id}@{tag}`
    last_seen: str = ""
    problem: str = ""
    last_heard_time: datetime | None = None

    @property
    def name(self) -> str:
        """`orderings/{id}`."""
        return f"orderings/{self.reference.partition('@')[0]}"


class OrderingFollower:
    """One task that watches and one that applies; a failure of either is told and tried again, and harms nothing."""

    def __init__(
        self, source: WatchedOrderingSource, desk: OrderingDesk, backoff_seconds: Sequence[float] = BACKOFF_SECONDS
    ) -> None:
        self._source = source
        self._desk = desk
        self._backoff = backoff_seconds
        self._states: list[_State] = []
        self._changed = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    def start(self, references: Sequence[str]) -> None:
        """Follow orderings that have been applied once, in this order."""
        self._states = [_State(reference) for reference in references]
        self._tasks = [asyncio.create_task(self._watch()), asyncio.create_task(self._apply())]

    def states(self) -> Sequence[FollowedOrdering]:
        """How following goes."""
        return [
            FollowedOrdering(
                f"orderings/{state.reference}",
                self._desk.applied(state.name),
                state.last_seen,
                state.problem,
                state.last_heard_time,
            )
            for state in self._states
        ]

    async def close(self) -> None:
        """Follow no longer."""
        for task in self._tasks:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def _watch(self) -> None:
        names = sorted({state.name for state in self._states})
        failures = 0
        while True:
            try:
                async with aclosing(self._source.changes(names)) as changes:
                    async for _ in changes:
                        failures = 0
                        self._changed.set()
            except Exception as error:
                self._note(self._states, error, "the orderings cannot be watched")
            await asyncio.sleep(self._delay(failures))
            failures += 1

    async def _apply(self) -> None:
        failures = 0
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._delay(failures - 1) if failures else None):
                    await self._changed.wait()
            self._changed.clear()
            outcomes = [await self._follow(state) for state in self._states]
            failures = 0 if all(outcomes) else failures + 1

    async def _follow(self, state: _State) -> bool:
        """Apply what the reference stands for now; False if that failed."""
        try:
            message = await self._source.fetch(state.reference)
            state.last_heard_time = datetime.now(UTC)
            state.last_seen = f"{message.name}@{message.revision_id}"
            await self._desk.apply_change(state.reference, message)
        except Exception as error:
            self._note([state], error, "a followed ordering cannot be applied; what was applied before stays")
            return False
        state.problem = ""
        return True

    def _note(self, states: Sequence[_State], error: Exception, event: str) -> None:
        known = error if isinstance(error, InferenceError) else as_inference_error(error)
        problem = known.message if known is not None else "internal error: see the log of the service"
        # The same problem again is no news, and a fault of our own is logged with its trace.
        if any(state.problem != problem for state in states):
            names = [state.reference for state in states]
            _log.warning(event, orderings=names, problem=problem, exc_info=None if known is not None else error)
        for state in states:
            state.problem = problem

    def _delay(self, failures: int) -> float:
        return self._backoff[min(failures, len(self._backoff) - 1)]
