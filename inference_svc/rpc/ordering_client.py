"""Fetches orderings from the ordering service."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from typing import Any, Protocol

import grpc

from inference_svc.errors import InvalidRequest, OrderingNotFound, OrderingServiceUnavailable
from loramux.ordering.v1 import ordering_pb2, ordering_service_pb2, ordering_service_pb2_grpc

DEADLINE_SECONDS = 10.0
SILENCE_SECONDS = 120.0  # a watch without even a sign of life is broken
RETRY_DELAYS_SECONDS = (0.2, 0.5, 1.0)
CHANNEL_OPTIONS = (
    ("grpc.max_receive_message_length", 32 * 2**20),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.enable_http_proxy", 0),
)


class OrderingSource(Protocol):
    """Where orderings come from."""

    async def fetch(self, reference: str) -> ordering_pb2.Ordering:
        """`{id}` or `{id}@{revision}` as the ordering service has it.

        Raises:
            OrderingNotFound: there is no such ordering or revision.
            OrderingServiceUnavailable: nobody can say.
        """


class WatchedOrderingSource(OrderingSource, Protocol):
    """Where orderings come from, and who tells of their changes."""

    def changes(self, names: Sequence[str]) -> AsyncGenerator[None, None]:
        """Yields once the orderings `orderings/{id}` are watched, and after every change of one of them.

        Raises:
            OrderingServiceUnavailable: they are no longer watched.
        """


class OrderingClient:
    """A connection to the ordering service; make and use it in one event loop."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._channel = grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS)
        self._stub = ordering_service_pb2_grpc.OrderingServiceStub(self._channel)

    async def fetch(self, reference: str) -> ordering_pb2.Ordering:
        """The ordering, tried again a few times while the service is away.

        Raises:
            OrderingNotFound: there is no such ordering or revision.
            InvalidRequest: the name is malformed.
            OrderingServiceUnavailable: the service cannot be reached, or fails.
        """
        deadline = asyncio.get_running_loop().time() + DEADLINE_SECONDS
        for delay in RETRY_DELAYS_SECONDS:
            try:
                return await self._get(reference, deadline)
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise self._as_ours(error, reference) from None
            await asyncio.sleep(delay)
        try:
            return await self._get(reference, deadline)
        except grpc.aio.AioRpcError as error:
            raise self._as_ours(error, reference) from None

    async def changes(self, names: Sequence[str]) -> AsyncGenerator[None, None]:
        """Yields once the orderings are watched, and after every change of one of them.

        Raises:
            OrderingServiceUnavailable: the service cannot be reached, is silent, or has ended the watch.
        """
        request = ordering_service_pb2.WatchOrderingsRequest(names=names)
        call: grpc.aio.UnaryStreamCall[Any, ordering_service_pb2.WatchOrderingsResponse]
        call = self._stub.WatchOrderings(request)
        is_first = True
        try:
            while True:
                async with asyncio.timeout(SILENCE_SECONDS):
                    response = await call.read()
                if not isinstance(response, ordering_service_pb2.WatchOrderingsResponse):  # the end
                    raise OrderingServiceUnavailable(f"the ordering service at {self._address} has ended the watch")
                if is_first or response.changes:
                    is_first = False
                    yield
        except TimeoutError:
            raise OrderingServiceUnavailable(
                f"the ordering service at {self._address} has said nothing for {SILENCE_SECONDS:g} seconds"
            ) from None
        except grpc.aio.AioRpcError as error:
            raise self._as_ours(error, names[0].partition("/")[2]) from None
        finally:
            call.cancel()

    async def close(self) -> None:
        """Give the connection back."""
        await self._channel.close()

    async def _get(self, reference: str, deadline: float) -> ordering_pb2.Ordering:
        remaining = max(0.1, deadline - asyncio.get_running_loop().time())
        request = ordering_service_pb2.GetOrderingRequest(name=f"orderings/{reference}")
        return await self._stub.GetOrdering(request, timeout=remaining)

    def _as_ours(
        self, error: grpc.aio.AioRpcError, reference: str
    ) -> OrderingNotFound | InvalidRequest | OrderingServiceUnavailable:
        name = f"orderings/{reference}"
        match error.code():
            case grpc.StatusCode.NOT_FOUND:
                return OrderingNotFound(
                    f"the ordering service at {self._address} has no {name}: `loramux ordering list` shows what it has",
                    ordering=name,
                )
            case grpc.StatusCode.INVALID_ARGUMENT:
                return InvalidRequest("ordering", f"{name} is not the name of an ordering: {error.details()}")
            case code:
                return OrderingServiceUnavailable(
                    f"the ordering service at {self._address} did not answer for {name} ({code.name})",
                    ordering=name,
                    address=self._address,
                )
