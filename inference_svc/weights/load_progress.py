"""Shows how far loading has come: a bar on a terminal, a log line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import structlog
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from inference_svc.weights.loader import Observer

SECONDS_BETWEEN_LINES = 2.0

_log = structlog.get_logger(__name__)


@contextmanager
def shown_progress(log_format: str) -> Iterator[Observer]:
    """What is to be told of the bytes of a model that are loaded.

    The bar is for people: where the log is JSON, or stderr is no terminal, lines are logged instead.
    """
    if log_format == "json" or not sys.stderr.isatty():
        yield ProgressLines()
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("loading weights", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


class ProgressLines:
    """Logs a line every two seconds; what is done sooner needs none."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last = clock()

    def __call__(self, done: int, total: int) -> None:
        """Progress."""
        if (now := self._clock()) - self._last >= SECONDS_BETWEEN_LINES:
            self._last = now
            _log.info("loading weights", percent=100 * done // max(total, 1), bytes=done, total_bytes=total)
