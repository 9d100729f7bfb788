"""AdapterService: loads, unloads, activates adapters and applies orderings while requests run."""

# ruff: noqa: ARG002, N802  (gRPC gives every method a context and the contract's name)

from __future__ import annotations

import asyncio

from inference_svc.rpc import adapter_messages as messages
from inference_svc.rpc.interceptor import Context
from inference_svc.rpc.ports import AdapterShelf, OrderingDesk
from loramux.inference.v1 import adapter_pb2, adapter_service_pb2, adapter_service_pb2_grpc


class AdapterServicer(adapter_service_pb2_grpc.AdapterServiceServicer):
    """Decodes, calls the shelf of adapters in a thread, encodes; errors leave as exceptions for the interceptor."""

    def __init__(self, adapters: AdapterShelf, orderings: OrderingDesk) -> None:
        self._adapters = adapters
        self._orderings = orderings

    async def LoadAdapter(
        self, request: adapter_service_pb2.LoadAdapterRequest, context: Context
    ) -> adapter_pb2.Adapter:
        """Load and register an adapter."""
        adapter = await asyncio.to_thread(
            self._adapters.load, request.adapter_id, request.source, replace=request.replace
        )
        return messages.adapter_to_proto(adapter)

    async def UnloadAdapter(
        self, request: adapter_service_pb2.UnloadAdapterRequest, context: Context
    ) -> adapter_pb2.Adapter:
        """Take an adapter away from later requests."""
        name = messages.adapter_name(request.name, "name")
        return messages.adapter_to_proto(await asyncio.to_thread(self._adapters.unload, name))

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
        )
