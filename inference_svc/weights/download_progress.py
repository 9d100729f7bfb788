"""How far a download is, said in the log every few seconds: a service has no terminal for a bar to move on."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType

import structlog

from inference_svc.weights.listing import size_text

EVERY_SECONDS = 5.0

_log = structlog.get_logger(__name__)


class DownloadStoppedError(Exception):
    """Another file of the same download failed."""


class DownloadProgress:
    """Bytes that have arrived of all files together; any thread may add to them."""

    def __init__(self, name: str, total: int, done: int, clock: Callable[[], float] = time.monotonic) -> None:
        """Start counting.

        Args:
            name: what is downloaded.
            total: bytes of all files.
            done: bytes of them that are here already.
            clock: seconds.
        """
        self._name = name
        self._total = total
        self._done = self._done_at_start = done
        self._clock = clock
        self._start = self._said_at = clock()
        self._lock = threading.Lock()
        self._is_stopped = False
        _log.info("downloading", name=name, size=size_text(total), here_already=size_text(done))

    def add(self, count: int) -> None:
        """More bytes are here.

        Raises:
            DownloadStoppedError: the download has failed meanwhile.
        """
        with self._lock:
            if self._is_stopped:
                raise DownloadStoppedError
            self._done += count
            now = self._clock()
            if now - self._said_at < EVERY_SECONDS:
                return
            self._said_at = now
            rate = (self._done - self._done_at_start) / (now - self._start)
            left = f"{(self._total - self._done) / rate:.0f} s" if rate > 0 else "unknown"
        _log.info(
            "downloading",
            name=self._name,
            percent=100 * self._done // max(self._total, 1),
            done=size_text(self._done),
            size=size_text(self._total),
            rate=f"{size_text(int(rate))}/s",
            left=left,
        )

    def finish(self) -> None:
        """All is here."""
        seconds = round(self._clock() - self._start, 1)
        _log.info("downloaded", name=self._name, size=size_text(self._total), seconds=seconds)

    def stop(self) -> None:
        """Make the other threads end."""
        with self._lock:
            self._is_stopped = True


class SilentBar:
    """As much of tqdm's bar as huggingface_hub uses, for files that are too small to watch."""

    def __init__(self, **settings: object) -> None:
        """Takes what a bar is told, and shows nothing of it."""

    def update(self, count: float | None = 1) -> None:
        """More bytes are here."""

    def close(self) -> None:
        """Nothing to put away."""

    def __enter__(self) -> SilentBar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
