"""Changes of orderings as they are written, for the asynchronous client."""

from __future__ import annotations

import asyncio
import weakref
from contextlib import suppress
from types import TracebackType

import grpc

from loramux.client.asynchronous.connection import AsyncConnection
from loramux.client.calls import WATCH
from loramux.client.changes import ChangeReader
from loramux.client.errors import LoramuxError, error_from_rpc
from loramux.client.ordering_history import OrderingChange
from loramux.ordering.v1 import ordering_service_pb2

Call = grpc.aio.UnaryStreamCall[ordering_service_pb2.WatchOrderingsRequest, ordering_service_pb2.WatchOrderingsResponse]


class AsyncOrderingWatch:
    """Iterates over changes without end, each once and in order, also while the service restarts.

    Closing it, leaving its `async with` block or dropping it ends it.
    """

    def __init__(self, connection: AsyncConnection, reader: ChangeReader) -> None:
        self._reader = reader
        self._stream = _Stream(connection)
        self._stream.open(reader.request())
        # A caller who leaves a loop early just drops the watch: the service must not stream on for nobody.
        self._close = weakref.finalize(self, self._stream.close)

    @property
    def sequence(self) -> int | None:
        """Everything up to here was given out: resume with `watch(after=...)`. None before the service answered."""
        return self._reader.sequence

    async def started(self) -> int:
        """Waits until the service watches, and returns the sequence that it goes on after. Raises LoramuxError."""
        while not self._reader.reached and await self._receive():
            pass
        return self._reader.sequence or 0

    def __aiter__(self) -> AsyncOrderingWatch:
        return self

    async def __anext__(self) -> OrderingChange:
        while self._close.alive:
            change = self._reader.take()
            if change is not None:
                return change
            await self._receive()
        raise StopAsyncIteration

    async def _receive(self) -> bool:
        """Takes one message, or opens the next stream; False if the watch was closed. Raises LoramuxError."""
        lost: LoramuxError | None = None
        try:
            response = await self._stream.receive()
            if response is not None:
                self._reader.feed(response)
                return True
        except grpc.RpcError as error:
            lost = error_from_rpc(error, self._stream.address)
        except asyncio.CancelledError:
            # grpc raises the same when the call was cancelled by close() and when the caller's task was.
            if self._close.alive:
                raise
        if not self._close.alive:
            return False
        try:
            pause_s = self._reader.pause_after(lost)
        except LoramuxError:
            await self.close()
            raise
        with suppress(TimeoutError):
            await asyncio.wait_for(self._stream.closed.wait(), pause_s)
        if self._close.alive:
            self._stream.open(self._reader.request())
        return self._close.alive

    async def close(self) -> None:
        """Ends the watch."""
        self._close()

    async def __aenter__(self) -> AsyncOrderingWatch:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


class _Stream:
    """The call that runs now; apart from the watch, so that dropping the watch can cancel it."""

    def __init__(self, connection: AsyncConnection) -> None:
        self.address = connection.address
        self.closed = asyncio.Event()
        self._invoke: grpc.aio.UnaryStreamMultiCallable[
            ordering_service_pb2.WatchOrderingsRequest, ordering_service_pb2.WatchOrderingsResponse
        ] = connection.channel.unary_stream(
            WATCH,
            request_serializer=ordering_service_pb2.WatchOrderingsRequest.SerializeToString,
            response_deserializer=ordering_service_pb2.WatchOrderingsResponse.FromString,
        )
        self._call: Call | None = None

    def open(self, request: ordering_service_pb2.WatchOrderingsRequest) -> None:
        self._call = self._invoke(request)

    async def receive(self) -> ordering_service_pb2.WatchOrderingsResponse | None:
        """The next message; None at the end of the stream. Raises RpcError."""
        assert self._call is not None
        response = await self._call.read()
        return response if isinstance(response, ordering_service_pb2.WatchOrderingsResponse) else None

    def close(self) -> None:
        # A watch that is dropped after its event loop was closed has nothing left to cancel.
        with suppress(RuntimeError):
            self.closed.set()
            if self._call is not None:
                self._call.cancel()
