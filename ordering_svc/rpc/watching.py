"""Streams of changes: one look at the database wakes all of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator
from contextlib import contextmanager

from ordering_svc.domain.changes import ChangeBatch
from ordering_svc.errors import InvalidValue, Unavailable

MAX_BATCH = 500  # changes in a message: about 100 KiB

ReadNewest = Callable[[], Awaitable[int]]
ReadAfter = Callable[[int, Collection[str], int], Awaitable[ChangeBatch]]


class ChangeFeed:
    """Knows the newest sequence: at once after a write of this process, soon after one of another.

    Belongs to the event loop that it is made in; it polls only while somebody watches.
    """

    def __init__(self, read_newest: ReadNewest, poll_seconds: float) -> None:
        self._read_newest = read_newest
        self._poll_seconds = poll_seconds
        self._loop = asyncio.get_running_loop()
        self._newest = 0
        self._num_watchers = 0
        self._poller: asyncio.Task[None] | None = None
        self._nudge = asyncio.Event()  # look now
        self._news = asyncio.Event()  # replaced whenever it was set, so that all who wait for it wake once
        self._failure: Exception | None = None
        self._is_closed = False

    def wake(self) -> None:
        """Look at once; may be called on any thread."""
        self._loop.call_soon_threadsafe(self._nudge.set)

    def close(self) -> None:
        """End every stream: whoever watches gets Unavailable and can go on elsewhere."""
        self._is_closed = True
        self._tell()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Polls while at least one stream is inside."""
        self._num_watchers += 1
        if self._poller is None:
            self._poller = self._loop.create_task(self._poll())
        try:
            yield
        finally:
            self._num_watchers -= 1
            if not self._num_watchers and self._poller is not None:
                self._poller.cancel()
                self._poller = None

    def check(self) -> None:
        """Raises Unavailable if the service drains, and what kept it from looking at the database."""
        if self._is_closed:
            raise Unavailable("the service is stopping: call again with the last sequence")
        if self._failure is not None:
            raise self._failure

    async def beyond(self, sequence: int, seconds: float) -> None:
        """Wait for a change after `sequence`, but no longer than so. Raises as `check`."""
        try:
            async with asyncio.timeout(seconds):
                while self._newest <= sequence:
                    self.check()
                    await self._news.wait()
        except TimeoutError:
            pass
        self.check()

    async def _poll(self) -> None:
        while True:
            self._nudge.clear()
            try:
                newest = await self._read_newest()
            except Exception as error:  # each stream raises it, and is answered and logged there
                self._failure = error
                self._tell()
            else:
                is_news = newest > self._newest or self._failure is not None
                self._newest, self._failure = newest, None
                if is_news:
                    self._tell()
            try:
                async with asyncio.timeout(self._poll_seconds):
                    await self._nudge.wait()
            except TimeoutError:
                continue

    def _tell(self) -> None:
        self._news.set()
        self._news = asyncio.Event()


async def watch(
    feed: ChangeFeed,
    read_after: ReadAfter,
    after: int | None,
    newest: int,
    ordering_ids: Collection[str],
    heartbeat_seconds: float,
) -> AsyncIterator[ChangeBatch]:
    """Batches from the resume point on, for ever; an empty one first, and whenever nothing happened for a while.

    Reads the next batch only when the last one was taken, so a slow reader costs one batch of memory.

    Raises:
        InvalidValue: the resume point is in the future.
        OrderingServiceError: the database cannot be read, or the service drains.
    """
    if after is not None and after > newest:
        raise InvalidValue("after_sequence", f"the newest change is {newest}, there is none {after} to go on after")
    position = newest if after is None else after
    loop = asyncio.get_running_loop()
    with feed.watching():
        yield ChangeBatch((), position)
        last_sent = loop.time()
        while True:
            batch = await read_after(position, ordering_ids, MAX_BATCH)
            position = batch.sequence
            if batch.changes:
                yield batch
                last_sent = loop.time()
            if len(batch.changes) == MAX_BATCH:
                feed.check()
                continue
            await feed.beyond(position, max(0.0, last_sent + heartbeat_seconds - loop.time()))
            if loop.time() - last_sent >= heartbeat_seconds:
                yield ChangeBatch((), position)
                last_sent = loop.time()
