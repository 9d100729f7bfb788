"""One answer as it is made, for the asynchronous client."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType

import grpc

from loramux.client.answers import AnswerReader
from loramux.client.asynchronous.connection import AsyncConnection
from loramux.client.calls import GENERATE
from loramux.client.errors import broken_answer, error_from_rpc
from loramux.client.generation import Generation, Piece, Started
from loramux.inference.v1 import generation_pb2


class AsyncAnswerStream:
    """Iterates over the pieces of an answer; closing it, leaving its `async with` or dropping it cancels it."""

    def __init__(
        self, connection: AsyncConnection, request: generation_pb2.GenerateRequest, timeout: float | None
    ) -> None:
        invoke: grpc.aio.UnaryStreamMultiCallable[generation_pb2.GenerateRequest, generation_pb2.GenerateResponse]
        invoke = connection.channel.unary_stream(
            GENERATE,
            request_serializer=generation_pb2.GenerateRequest.SerializeToString,
            response_deserializer=generation_pb2.GenerateResponse.FromString,
        )
        self._address = connection.address
        self._call = invoke(request, timeout=timeout)
        self._reader = AnswerReader()
        # A caller who leaves a loop early just drops the stream: the request must not run on for nobody.
        self._cancel = weakref.finalize(self, _cancel, self._call.cancel)

    def __aiter__(self) -> AsyncAnswerStream:
        return self

    async def __anext__(self) -> Piece:
        while True:
            piece = self._reader.feed(await self._receive())
            if piece is not None:
                return piece

    async def _receive(self) -> generation_pb2.GenerateResponse:
        if not self._cancel.alive:
            raise StopAsyncIteration
        try:
            response = await self._call.read()
        except grpc.RpcError as error:
            await self.close()
            raise error_from_rpc(error, self._address) from None
        if isinstance(response, generation_pb2.GenerateResponse):
            return response
        raise StopAsyncIteration

    async def started(self) -> Started:
        """What the request runs with; waits until it is accepted. Raises LoramuxError."""
        if self._reader.started is None:
            try:
                self._reader.feed(await self._receive())
            except StopAsyncIteration:
                raise broken_answer("the stream ended before the answer was started") from None
        if self._reader.started is None:
            raise broken_answer("the service did not start the answer first")
        return self._reader.started

    async def generation(self) -> Generation:
        """Reads what is left and returns the whole answer. Raises LoramuxError."""
        async with self:
            async for _ in self:
                pass
        return self._reader.generation()

    async def close(self) -> None:
        """Cancels the request if it still runs."""
        self._cancel()

    async def __aenter__(self) -> AsyncAnswerStream:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


def _cancel(cancel: Callable[[], bool]) -> None:
    # A stream that is dropped after its event loop was closed has nothing left to cancel.
    with suppress(RuntimeError):
        cancel()
