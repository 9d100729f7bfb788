"""OrderingService over gRPC: every method decodes, calls one use case, and encodes."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import grpc

from loramux.ordering.v1 import ordering_pb2, ordering_service_pb2, ordering_service_pb2_grpc
from ordering_svc.orderings import Orderings
from ordering_svc.rpc import messages

Context = grpc.aio.ServicerContext[Any, Any]
Result = TypeVar("Result")


class OrderingServicer(ordering_service_pb2_grpc.OrderingServiceServicer):
    """Runs use cases on threads: one set for the database, one for models, so that a slow hub holds up no reader."""

    def __init__(self, orderings: Orderings, storage: ThreadPoolExecutor, models: ThreadPoolExecutor) -> None:
        self._orderings = orderings
        self._storage = storage
        self._models = models

    async def CreateOrdering(  # noqa: N802 - names of the contract, here and below
        self, request: ordering_service_pb2.CreateOrderingRequest, _context: Context
    ) -> ordering_pb2.Ordering:
        def work() -> ordering_pb2.Ordering:
            metadata = messages.decode_metadata(request.ordering)
            document = messages.decode_document(request.ordering.document)
            return messages.encode_ordering(self._orderings.create(request.ordering_id, metadata, document))

        return await _on(self._storage, work)

    async def GetOrdering(  # noqa: N802
        self, request: ordering_service_pb2.GetOrderingRequest, _context: Context
    ) -> ordering_pb2.Ordering:
        return await _on(self._storage, lambda: messages.encode_ordering(self._orderings.get(request.name)))

    async def ListOrderings(  # noqa: N802
        self, request: ordering_service_pb2.ListOrderingsRequest, _context: Context
    ) -> ordering_service_pb2.ListOrderingsResponse:
        def work() -> ordering_service_pb2.ListOrderingsResponse:
            page = self._orderings.list_orderings(request.page_size, request.page_token)
            return ordering_service_pb2.ListOrderingsResponse(
                orderings=map(messages.encode_ordering, page.orderings), next_page_token=page.next_page_token
            )

        return await _on(self._storage, work)

    async def ListOrderingRevisions(  # noqa: N802
        self, request: ordering_service_pb2.ListOrderingRevisionsRequest, _context: Context
    ) -> ordering_service_pb2.ListOrderingRevisionsResponse:
        def work() -> ordering_service_pb2.ListOrderingRevisionsResponse:
            page = self._orderings.list_revisions(request.name, request.page_size, request.page_token)
            return ordering_service_pb2.ListOrderingRevisionsResponse(
                revisions=map(messages.encode_ordering, page.orderings), next_page_token=page.next_page_token
            )

        return await _on(self._storage, work)

    async def UpdateOrdering(  # noqa: N802
        self, request: ordering_service_pb2.UpdateOrderingRequest, _context: Context
    ) -> ordering_pb2.Ordering:
        def work() -> ordering_pb2.Ordering:
            change, document = messages.decode_change(request), messages.decode_update_document(request)
            etag = messages.decode_etag(request)
            return messages.encode_ordering(self._orderings.update(request.name, etag, change, document))

        return await _on(self._storage, work)

    async def DeleteOrdering(  # noqa: N802
        self, request: ordering_service_pb2.DeleteOrderingRequest, _context: Context
    ) -> ordering_service_pb2.DeleteOrderingResponse:
        def work() -> ordering_service_pb2.DeleteOrderingResponse:
            deleted = self._orderings.delete(request.name, messages.decode_etag(request))
            return ordering_service_pb2.DeleteOrderingResponse(ordering=messages.encode_ordering(deleted))

        return await _on(self._storage, work)

    async def ImportOrdering(  # noqa: N802
        self, request: ordering_service_pb2.ImportOrderingRequest, _context: Context
    ) -> ordering_pb2.Ordering:
        def work() -> ordering_pb2.Ordering:
            return messages.encode_ordering(self._orderings.import_file(messages.decode_import(request)))

        return await _on(self._storage, work)

    async def ExportOrdering(  # noqa: N802
        self, request: ordering_service_pb2.ExportOrderingRequest, _context: Context
    ) -> ordering_service_pb2.ExportOrderingResponse:
        def work() -> ordering_service_pb2.ExportOrderingResponse:
            revision = self._orderings.get(request.name).revision
            return ordering_service_pb2.ExportOrderingResponse(json=revision.file, revision_id=revision.revision_id)

        return await _on(self._storage, work)

    async def GenerateOrdering(  # noqa: N802
        self, request: ordering_service_pb2.GenerateOrderingRequest, _context: Context
    ) -> ordering_service_pb2.GenerateOrderingResponse:
        def work() -> ordering_service_pb2.GenerateOrderingResponse:
            return messages.encode_generated(self._orderings.generate(messages.decode_generation(request)))

        return await _on(self._models, work)

    async def ValidateOrdering(  # noqa: N802
        self, request: ordering_service_pb2.ValidateOrderingRequest, _context: Context
    ) -> ordering_service_pb2.ValidateOrderingResponse:
        def work() -> ordering_service_pb2.ValidateOrderingResponse:
            return messages.encode_problems(self._orderings.validate(messages.decode_validation(request)))

        return await _on(self._models, work)


async def _on(threads: ThreadPoolExecutor, work: Callable[[], Result]) -> Result:
    """Run blocking work on a thread, with the log context of this call."""
    context = contextvars.copy_context()
    return await asyncio.get_running_loop().run_in_executor(threads, lambda: context.run(work))
