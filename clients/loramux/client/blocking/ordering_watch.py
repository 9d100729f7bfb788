"""Changes of orderings as they are written, for the blocking client."""

from __future__ import annotations

import threading
import weakref
from types import TracebackType

import grpc

from loramux.client.blocking.connection import Connection
from loramux.client.calls import WATCH
from loramux.client.changes import ChangeReader
from loramux.client.errors import LoramuxError, error_from_rpc
from loramux.client.ordering_history import OrderingChange
from loramux.ordering.v1 import ordering_service_pb2


class OrderingWatch:
    """Iterates over changes without end, each once and in order, also while the service restarts.

    Closing it (from any thread), leaving its `with` block or dropping it ends it.
    """

    def __init__(self, connection: Connection, reader: ChangeReader) -> None:
        self._reader = reader
        self._stream = _Stream(connection)
        self._stream.open(reader.request())
        # A caller who leaves a `for` loop early just drops the watch: the service must not stream on for nobody.
        self._close = weakref.finalize(self, self._stream.close)

    @property
    def sequence(self) -> int | None:
        """Everything up to here was given out: resume with `watch(after=...)`. None before the service answered."""
        return self._reader.sequence

    def started(self) -> int:
        """Waits until the service watches, and returns the sequence that it goes on after. Raises LoramuxError."""
        while not self._reader.reached and self._receive():
            pass
        return self._reader.sequence or 0

    def __iter__(self) -> OrderingWatch:
        return self

    def __next__(self) -> OrderingChange:
        while self._close.alive:
            change = self._reader.take()
            if change is not None:
                return change
            self._receive()
        raise StopIteration

    def _receive(self) -> bool:
        """Takes one message, or opens the next stream; False if the watch was closed. Raises LoramuxError."""
        lost: LoramuxError | None = None
        try:
            response = self._stream.receive()
            if response is not None:
                self._reader.feed(response)
                return True
        except grpc.RpcError as error:
            lost = error_from_rpc(error, self._stream.address)
        if not self._close.alive:
            return False
        try:
            pause_s = self._reader.pause_after(lost)
        except LoramuxError:
            self.close()
            raise
        if not self._stream.closed.wait(pause_s):
            self._stream.open(self._reader.request())
        return self._close.alive

    def close(self) -> None:
        """Ends the watch."""
        self._close()

    def __enter__(self) -> OrderingWatch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Stream:
    """The call that runs now; apart from the watch, so that dropping the watch can cancel it."""

    def __init__(self, connection: Connection) -> None:
        self.address = connection.address
        self.closed = threading.Event()
        self._invoke: grpc.UnaryStreamMultiCallable[
            ordering_service_pb2.WatchOrderingsRequest, ordering_service_pb2.WatchOrderingsResponse
        ] = connection.channel.unary_stream(
            WATCH,
            request_serializer=ordering_service_pb2.WatchOrderingsRequest.SerializeToString,
            response_deserializer=ordering_service_pb2.WatchOrderingsResponse.FromString,
        )
        self._call: grpc._CallIterator[ordering_service_pb2.WatchOrderingsResponse] | None = None

    def open(self, request: ordering_service_pb2.WatchOrderingsRequest) -> None:
        self._call = self._invoke(request)
        if self.closed.is_set():
            self._call.cancel()

    def receive(self) -> ordering_service_pb2.WatchOrderingsResponse | None:
        """The next message; None at the end of the stream. Raises RpcError."""
        assert self._call is not None
        return next(self._call, None)

    def close(self) -> None:
        self.closed.set()
        if self._call is not None:
            self._call.cancel()
