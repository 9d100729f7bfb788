"""OrderingService over gRPC: every method decodes, calls one use case, and encodes."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import AsyncIterator, Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import grpc
from google.protobuf.message import Message

from loramux.ordering.v1 import ordering_pb2, ordering_service_pb2, ordering_service_pb2_grpc
from ordering_svc.domain.changes import ChangeBatch
from ordering_svc.domain.diff import told
from ordering_svc.domain.ordering import Ordering
from ordering_svc.orderings import Orderings
from ordering_svc.persistence.store import WriteRequest
from ordering_svc.rpc import messages
from ordering_svc.rpc.watching import ChangeFeed, watch

Context = grpc.aio.ServicerContext[Any, Any]
Result = TypeVar("Result")


class OrderingServicer(ordering_service_pb2_grpc.OrderingServiceServicer):
    """Runs use cases on threads: one set for the database, one for models, so that a slow hub holds up no reader."""

    def __init__(
        self,
        orderings: Orderings,
        storage: ThreadPoolExecutor,
        models: ThreadPoolExecutor,
        *,
        poll_seconds: float,
        heartbeat_seconds: float,
    ) -> None:
        """For the running event loop; `poll_seconds` is how often streams look for writes of other processes."""
        self._orderings = orderings
        self._storage = storage
        self._models = models
        self._heartbeat_seconds = heartbeat_seconds
        self._feed = ChangeFeed(self._newest_sequence, poll_seconds)
        orderings.on_write(self._feed.wake)

    def stop_watches(self) -> None:
        """End every stream of changes."""
        self._feed.close()

    async def CreateOrdering(  # noqa: N802 - names of the contract, here and below
        self, request: ordering_service_pb2.CreateOrderingRequest, _context: Context
    ) -> ordering_pb2.Ordering:
        def work(how: WriteRequest) -> Ordering:
            metadata = messages.decode_metadata(request.ordering)
            document = messages.decode_document(request.ordering.document)
            return self._orderings.create(request.ordering_id, metadata, document, how)

        return await self._write(request, work)

    async def GetOrdering(  # noqa: N802
        self, request: ordering_service_pb2.GetOrderingRequest, _context: Context
    ) -> ordering_pb2.Ordering:
        def work() -> ordering_pb2.Ordering:
            return messages.encode_ordering(self._orderings.get(request.name, show_deleted=request.show_deleted))

        return await _on(self._storage, work)

    async def ListOrderings(  # noqa: N802
        self, request: ordering_service_pb2.ListOrderingsRequest, _context: Context
    ) -> ordering_service_pb2.ListOrderingsResponse:
        def work() -> ordering_service_pb2.ListOrderingsResponse:
            page = self._orderings.list_orderings(messages.decode_list(request))
            return ordering_service_pb2.ListOrderingsResponse(
                orderings=map(messages.encode_ordering, page.orderings), next_page_token=page.next_page_token
            )

        return await _on(self._storage, work)

    async def ListOrderingRevisions(  # noqa: N802
        self, request: ordering_service_pb2.ListOrderingRevisionsRequest, _context: Context
    ) -> ordering_service_pb2.ListOrderingRevisionsResponse:
        def work() -> ordering_service_pb2.ListOrderingRevisionsResponse:
            page = self._orderings.list_revisions(
                request.name, request.page_size, request.page_token, show_deleted=request.show_deleted
            )
            return ordering_service_pb2.ListOrderingRevisionsResponse(
                revisions=map(messages.encode_ordering, page.orderings), next_page_token=page.next_page_token
            )

        return await _on(self._storage, work)

    async def UpdateOrdering(  # noqa: N802
        self, request: ordering_service_pb2.UpdateOrderingRequest, _context: Context
    ) -> ordering_pb2.Ordering:
        def work(how: WriteRequest) -> Ordering:
            change, document = messages.decode_change(request), messages.decode_update_document(request)
            return self._orderings.update(request.name, messages.decode_etag(request), change, document, how)

        return await self._write(request, work)

    async def DeleteOrdering(  # noqa: N802
        self, request: ordering_service_pb2.DeleteOrderingRequest, _context: Context
    ) -> ordering_service_pb2.DeleteOrderingResponse:
        etag = messages.decode_etag(request)
        deleted = await self._write(request, lambda how: self._orderings.delete(request.name, etag, how))
        return ordering_service_pb2.DeleteOrderingResponse(ordering=deleted)

    async def UndeleteOrdering(  # noqa: N802
        self, request: ordering_service_pb2.UndeleteOrderingRequest, _context: Context
    ) -> ordering_pb2.Ordering:
        etag = messages.decode_etag(request)
        return await self._write(request, lambda how: self._orderings.undelete(request.name, etag, how))

    async def PurgeOrdering(  # noqa: N802
        self, request: ordering_service_pb2.PurgeOrderingRequest, _context: Context
    ) -> ordering_service_pb2.PurgeOrderingResponse:
        etag = messages.decode_etag(request)
        purged = await self._write(request, lambda how: self._orderings.purge(request.name, etag, how))
        # Numbered from 1 without gaps, so the newest revision's number is their count.
        return ordering_service_pb2.PurgeOrderingResponse(purged_revisions=purged.revision_number)

    async def RollbackOrdering(  # noqa: N802
        self, request: ordering_service_pb2.RollbackOrderingRequest, _context: Context
    ) -> ordering_pb2.Ordering:
        etag = messages.decode_etag(request)
        return await self._write(
            request, lambda how: self._orderings.rollback(request.name, etag, request.revision, how)
        )

    async def TagRevision(  # noqa: N802
        self, request: ordering_service_pb2.TagRevisionRequest, _context: Context
    ) -> ordering_pb2.Ordering:
        etag = messages.decode_etag(request)
        revision = request.revision if request.HasField("revision") else None
        return await self._write(
            request, lambda how: self._orderings.tag(request.name, etag, request.tag, revision, how)
        )

    async def UntagRevision(  # noqa: N802
        self, request: ordering_service_pb2.UntagRevisionRequest, _context: Context
    ) -> ordering_pb2.Ordering:
        etag = messages.decode_etag(request)
        return await self._write(request, lambda how: self._orderings.untag(request.name, etag, request.tag, how))

    async def DiffOrderings(  # noqa: N802
        self, request: ordering_service_pb2.DiffOrderingsRequest, _context: Context
    ) -> ordering_service_pb2.DiffOrderingsResponse:
        def work() -> ordering_service_pb2.DiffOrderingsResponse:
            found, is_same_file = self._orderings.diff(request.before, request.after)
            return messages.encode_differences(found, told(found), is_same_file=is_same_file)

        return await _on(self._storage, work)

    async def WatchOrderings(  # noqa: N802
        self, request: ordering_service_pb2.WatchOrderingsRequest, _context: Context
    ) -> AsyncIterator[ordering_service_pb2.WatchOrderingsResponse]:
        ordering_ids = messages.decode_watched(request)
        after = request.after_sequence if request.HasField("after_sequence") else None
        newest = await self._newest_sequence()
        batches = watch(self._feed, self._changes_after, after, newest, ordering_ids, self._heartbeat_seconds)
        async for batch in batches:
            yield messages.encode_changes(batch)

    async def ImportOrdering(  # noqa: N802
        self, request: ordering_service_pb2.ImportOrderingRequest, _context: Context
    ) -> ordering_pb2.Ordering:
        def work(how: WriteRequest) -> Ordering:
            return self._orderings.import_file(messages.decode_import(request), request.json, how)

        return await self._write(request, work)

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
            made = self._orderings.generate(messages.decode_generation(request), messages.decode_write(request))
            return messages.encode_generated(made)

        return await _on(self._models, work)

    async def DeriveOrdering(  # noqa: N802
        self, request: ordering_service_pb2.DeriveOrderingRequest, _context: Context
    ) -> ordering_service_pb2.DeriveOrderingResponse:
        def work() -> ordering_service_pb2.DeriveOrderingResponse:
            made = self._orderings.derive(messages.decode_derivation(request), messages.decode_write(request))
            return messages.encode_derived(made)

        return await _on(self._storage, work)

    async def ValidateOrdering(  # noqa: N802
        self, request: ordering_service_pb2.ValidateOrderingRequest, _context: Context
    ) -> ordering_service_pb2.ValidateOrderingResponse:
        def work() -> ordering_service_pb2.ValidateOrderingResponse:
            return messages.encode_problems(self._orderings.validate(messages.decode_validation(request)))

        return await _on(self._models, work)

    async def _write(self, request: Message, work: Callable[[WriteRequest], Ordering]) -> ordering_pb2.Ordering:
        return await _on(self._storage, lambda: messages.encode_ordering(work(messages.decode_write(request))))

    async def _newest_sequence(self) -> int:
        return await _on(self._storage, self._orderings.newest_sequence)

    async def _changes_after(self, sequence: int, ordering_ids: Collection[str], limit: int) -> ChangeBatch:
        return await _on(self._storage, lambda: self._orderings.changes_after(sequence, ordering_ids, limit))


async def _on(threads: ThreadPoolExecutor, work: Callable[[], Result]) -> Result:
    """Run blocking work on a thread, with the log context of this call."""
    context = contextvars.copy_context()
    return await asyncio.get_running_loop().run_in_executor(threads, lambda: context.run(work))
