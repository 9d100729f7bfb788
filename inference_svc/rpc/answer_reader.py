"""One accepted request as its stream's handler sees it: events to send on, and one way to stop."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Self

import structlog

from inference_svc.engine.request import Event, Failed, Finished, GenerationRequest, Output, Started
from inference_svc.rpc.ports import GenerationEngine, OutputStream
from inference_svc.rpc.wakeup import Bell, Wakeup

_log = structlog.get_logger(__name__)


class AnswerReader:
    """The events of a request, its cancellation, and the log line at its end."""

    def __init__(self, request: GenerationRequest, stream: OutputStream, wakeup: Wakeup) -> None:
        self._request = request
        self._stream = stream
        self._wakeup = wakeup
        self._began = time.monotonic()
        self._applied: tuple[str, ...] = ()
        self._num_tokens = 0
        self._outcome: str | None = None

    @classmethod
    def begin(cls, engine: GenerationEngine, request: GenerationRequest, bell: Bell) -> Self:
        """Hand the request to the engine.

        Raises:
            InferenceError: the engine refuses it.
        """
        wakeup = Wakeup(bell)
        return cls(request, engine.submit(request, wakeup.call), wakeup)

    @property
    def is_over(self) -> bool:
        """The answer has ended, or was cancelled."""
        return self._outcome is not None

    async def take(self) -> Sequence[Event]:
        """Wait for the next events; there may be none."""
        await self._wakeup.wait()
        return self._stream.take()

    def cancel(self) -> None:
        """Stop the request unless it has ended; any number of times.

        Called both when the call is done and when its handler is: a handler that waits for a slow reader is not told
        that its call was cancelled, and only the callback of the call gets to know.
        """
        if self._outcome is None:
            self._end("cancelled")
            self._stream.cancel()

    def note(self, event: Event) -> None:
        """An event that was taken is about to be sent."""
        match event:
            case Started():
                self._applied = tuple(adapter.name for adapter in event.applied)
            case Output():
                self._num_tokens += len(event.tokens)
            case Finished():
                self._num_tokens = event.completion_tokens
                self._end(event.reason.value)
            case Failed(error):
                self._end(error.reason)

    def _end(self, outcome: str) -> None:
        self._outcome = outcome
        _log.info(
            "request ended",
            request_id=self._request.request_id,
            outcome=outcome,
            prompt_tokens=len(self._request.prompt_token_ids),
            completion_tokens=self._num_tokens,
            adapters=self._applied,
            duration_seconds=round(time.monotonic() - self._began, 3),
        )
