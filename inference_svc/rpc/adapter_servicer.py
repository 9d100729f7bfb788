"""AdapterService: loads, unloads, activates adapters and applies orderings while requests run."""

# ruff: noqa: ARG002, N802  (gRPC gives every method a context and the contract's name)

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence

from inference_svc.rpc import adapter_messages as messages
from inference_svc.rpc.interceptor import Context
from inference_svc.rpc.ports import AdapterShelf, FollowedOrdering, OrderingDesk
from inference_svc.rpc.wakeup import Bell, Wakeup
from loramux.inference.v1 import adapter_pb2, adapter_service_pb2, adapter_service_pb2_grpc


class AdapterServicer(adapter_service_pb2_grpc.AdapterServiceServicer):
    """Decodes, calls the shelf of adapters in a thread, encodes; errors leave as exceptions for the interceptor."""

    def __init__(
        self,
        adapters: AdapterShelf,
        orderings: OrderingDesk,
        followed: Callable[[], Sequence[FollowedOrdering]] = tuple,
    ) -> None:
        self._adapters = adapters
        self._orderings = orderings
        self._followed = followed

    async def LoadAdapter(
        self, request: adapter_service_pb2.LoadAdapterRequest, context: Context
    ) -> adapter_pb2.Adapter:
        """Load and register an adapter."""
        adapter = await self._adapters.load(
            request.adapter_id,
            request.source,
            replace=request.replace,
            expected_digest=request.expected_digest if request.HasField("expected_digest") else None,
            pinned=request.pinned,
        )
        return messages.adapter_to_proto(adapter)

    async def UnloadAdapter(
        self, request: adapter_service_pb2.UnloadAdapterRequest, context: Context
    ) -> adapter_pb2.Adapter:
        """Take an adapter away from later requests."""
        name = messages.adapter_name(request.name, "name")
        expected = request.expected_digest if request.HasField("expected_digest") else None
        return messages.adapter_to_proto(await asyncio.to_thread(self._adapters.unload, name, expected_digest=expected))

    async def PinAdapter(self, request: adapter_service_pb2.PinAdapterRequest, context: Context) -> adapter_pb2.Adapter:
        """Keep an adapter from being evicted."""
        name = messages.adapter_name(request.name, "name")
        return messages.adapter_to_proto(await asyncio.to_thread(self._adapters.pin, name, True))

    async def UnpinAdapter(
        self, request: adapter_service_pb2.UnpinAdapterRequest, context: Context
    ) -> adapter_pb2.Adapter:
        """Let an adapter be evicted again."""
        name = messages.adapter_name(request.name, "name")
        return messages.adapter_to_proto(await asyncio.to_thread(self._adapters.pin, name, False))

    async def GetAdapter(self, request: adapter_service_pb2.GetAdapterRequest, context: Context) -> adapter_pb2.Adapter:
        """One adapter."""
        name = messages.adapter_name(request.name, "name")
        return messages.adapter_to_proto(await asyncio.to_thread(self._adapters.get, name))

    async def ListAdapters(
        self, request: adapter_service_pb2.ListAdaptersRequest, context: Context
    ) -> adapter_service_pb2.ListAdaptersResponse:
        """A page of adapters, and the active default."""
        adapters = await asyncio.to_thread(self._adapters.list_all)
        page, next_page_token = messages.page_of(adapters, request.page_size, request.page_token)
        return adapter_service_pb2.ListAdaptersResponse(
            adapters=[messages.adapter_to_proto(adapter) for adapter in page],
            next_page_token=next_page_token,
            active=messages.active_to_proto(await asyncio.to_thread(self._adapters.active)),
            followed=map(messages.followed_to_proto, self._followed()),
        )

    async def ActivateAdapters(
        self, request: adapter_service_pb2.ActivateAdaptersRequest, context: Context
    ) -> adapter_pb2.ActiveAdapters:
        """Replace the active default."""
        selection = messages.new_default_from_proto(request.selection)
        return messages.active_to_proto(await asyncio.to_thread(self._adapters.activate, selection))

    async def ApplyOrdering(
        self, request: adapter_service_pb2.ApplyOrderingRequest, context: Context
    ) -> adapter_service_pb2.ApplyOrderingResponse:
        """Fetch an ordering, load what it names, and activate it."""
        applied = await self._orderings.apply(
            request.ordering.removeprefix(messages.ORDERING_PREFIX),
            adapter_model_id=request.adapter_model_id if request.HasField("adapter_model_id") else None,
            activate=not request.skip_activation,
        )
        return adapter_service_pb2.ApplyOrderingResponse(
            ordering=applied.ordering,
            adapters=[messages.adapter_to_proto(adapter) for adapter in applied.adapters],
            active=messages.active_to_proto(applied.active),
            warnings=applied.warnings,
        )

    async def WatchAdapters(
        self, request: adapter_service_pb2.WatchAdaptersRequest, context: Context
    ) -> AsyncGenerator[adapter_service_pb2.WatchAdaptersResponse, None]:
        """What is resident, then every change until the client cancels."""
        wakeup = Wakeup(Bell())
        token = request.resume_token if request.HasField("resume_token") else None
        watch = await asyncio.to_thread(self._adapters.watch, token, wakeup.call)
        context.add_done_callback(lambda _context: watch.cancel())  # type: ignore[arg-type]  # the stub wants a class
        try:
            while True:
                for update in watch.take():
                    yield messages.update_to_proto(update)
                await wakeup.wait()
        finally:
            watch.cancel()
