"""One answer as it is made, for the blocking client."""

from __future__ import annotations

import weakref
from types import TracebackType

import grpc

from loramux.client.answers import AnswerReader
from loramux.client.blocking.connection import Connection
from loramux.client.calls import GENERATE
from loramux.client.errors import broken_answer, error_from_rpc
from loramux.client.generation import Generation, Piece, Started
from loramux.inference.v1 import generation_pb2


class AnswerStream:
    """Iterates over the pieces of an answer; closing it, leaving its `with` block or dropping it cancels it."""

    def __init__(self, connection: Connection, request: generation_pb2.GenerateRequest, timeout: float | None) -> None:
        invoke: grpc.UnaryStreamMultiCallable[generation_pb2.GenerateRequest, generation_pb2.GenerateResponse]
        invoke = connection.channel.unary_stream(
            GENERATE,
            request_serializer=generation_pb2.GenerateRequest.SerializeToString,
            response_deserializer=generation_pb2.GenerateResponse.FromString,
        )
        self._address = connection.address
        self._call = invoke(request, timeout=timeout)
        self._reader = AnswerReader()
        # A caller who leaves a `for` loop early just drops the stream: the request must not run on for nobody.
        self._cancel = weakref.finalize(self, self._call.cancel)

    def __iter__(self) -> AnswerStream:
        return self

    def __next__(self) -> Piece:
        while True:
            piece = self._reader.feed(self._receive())
            if piece is not None:
                return piece

    def _receive(self) -> generation_pb2.GenerateResponse:
        if not self._cancel.alive:
            raise StopIteration
        try:
            return next(self._call)
        except grpc.RpcError as error:
            self.close()
            raise error_from_rpc(error, self._address) from None

    def started(self) -> Started:
        """What the request runs with; waits until it is accepted. Raises LoramuxError."""
        if self._reader.started is None:
            try:
                self._reader.feed(self._receive())
            except StopIteration:
                raise broken_answer("the stream ended before the answer was started") from None
        if self._reader.started is None:
            raise broken_answer("the service did not start the answer first")
        return self._reader.started

    def generation(self) -> Generation:
        """Reads what is left and returns the whole answer. Raises LoramuxError."""
        with self:
            for _ in self:
                pass
        return self._reader.generation()

    def close(self) -> None:
        """Cancels the request if it still runs."""
        self._cancel()

    def __enter__(self) -> AnswerStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
