"""The part of the fake ordering service that remembers: deletion, tags, roll back, the stream of changes."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import grpc

from loramux.ordering.v1 import ordering_pb2, ordering_service_pb2, ordering_service_pb2_grpc
from tests.clients.refusals import refuse


@dataclass
class FakeHistory(ordering_service_pb2_grpc.OrderingServiceServicer):
    """Revisions by name, and every change in the order of its making.

    `stumbles` writes fail first, as those of a service that restarts. A watch loses its stream after as many messages
    as the next entry of `losses` says.
    """

    stored: dict[str, list[ordering_pb2.Ordering]] = field(default_factory=dict)
    changes: list[ordering_pb2.OrderingChange] = field(default_factory=list)
    seen: list[Any] = field(default_factory=list)
    stumbles: int = 0
    losses: list[int] = field(default_factory=list)
    changed: threading.Condition = field(default_factory=threading.Condition)
    watch_ended: threading.Event = field(default_factory=threading.Event)

    def stumble(self, context: grpc.ServicerContext) -> None:
        if self.stumbles > 0:
            self.stumbles -= 1
            refuse(context, grpc.StatusCode.UNAVAILABLE, "draining", "DRAINING")

    def add(
        self,
        name: str,
        ordering: ordering_pb2.Ordering,
        type_: ordering_pb2.ChangeType.ValueType,
        method: str = "written",
    ) -> ordering_pb2.Ordering:
        revisions = self.stored.setdefault(name, [])
        stored = ordering_pb2.Ordering()
        stored.CopyFrom(ordering)
        stored.name = name
        stored.revision_number = len(revisions) + 1
        stored.revision_id = f"r{stored.revision_number}"
        stored.etag = f"etag-{stored.revision_number}"
        stored.provenance.method = method
        del stored.tags[:]
        revisions.append(stored)
        self.note(stored, type_)
        return stored

    def note(
        self, ordering: ordering_pb2.Ordering, type_: ordering_pb2.ChangeType.ValueType, tag: str = "", tagged: int = 0
    ) -> None:
        with self.changed:
            change = ordering_pb2.OrderingChange(
                sequence=len(self.changes) + 1,
                type=type_,
                name=ordering.name,
                revision_number=ordering.revision_number,
                revision_id=ordering.revision_id,
                etag=ordering.etag,
                tag=tag,
                tagged_revision_number=tagged,
            )
            change.change_time.FromSeconds(1_700_000_000 + change.sequence)
            self.changes.append(change)
            self.changed.notify_all()

    def is_deleted(self, name: str) -> bool:
        return self.stored[name][-1].HasField("delete_time")

    def find(self, name: str, context: grpc.ServicerContext, show_deleted: bool = False) -> ordering_pb2.Ordering:
        bare, _, revision = name.partition("@")
        if bare not in self.stored or (self.is_deleted(bare) and not show_deleted):
            refuse(context, grpc.StatusCode.NOT_FOUND, f"there is no ordering {bare}", "ORDERING_NOT_FOUND")
        revisions = self.stored[bare]
        for stored in revisions:
            if revision and (revision == str(stored.revision_number) or revision in stored.tags):
                return stored
        if revision:
            refuse(context, grpc.StatusCode.NOT_FOUND, f"{bare} has no revision {revision}", "REVISION_NOT_FOUND")
        return revisions[-1]

    def guard(self, request: Any, context: grpc.ServicerContext, show_deleted: bool = False) -> ordering_pb2.Ordering:
        self.seen.append(request)
        self.stumble(context)
        current = self.find(request.name, context, show_deleted)
        if request.HasField("etag") and request.etag != current.etag:
            refuse(context, grpc.StatusCode.ABORTED, "the etag is stale", "ETAG_MISMATCH", current_etag=current.etag)
        return current

    def DeleteOrdering(  # noqa: N802
        self, request: ordering_service_pb2.DeleteOrderingRequest, context: grpc.ServicerContext
    ) -> ordering_service_pb2.DeleteOrderingResponse:
        gone = self.guard(request, context)
        answer = ordering_service_pb2.DeleteOrderingResponse(ordering=gone)  # as it was
        gone.delete_time.FromSeconds(1_800_000_000)
        self.note(gone, ordering_pb2.CHANGE_TYPE_DELETED)
        return answer

    def UndeleteOrdering(  # noqa: N802
        self, request: ordering_service_pb2.UndeleteOrderingRequest, context: grpc.ServicerContext
    ) -> ordering_pb2.Ordering:
        found = self._deleted(request, context)
        found.ClearField("delete_time")
        self.note(found, ordering_pb2.CHANGE_TYPE_UNDELETED)
        return found

    def PurgeOrdering(  # noqa: N802
        self, request: ordering_service_pb2.PurgeOrderingRequest, context: grpc.ServicerContext
    ) -> ordering_service_pb2.PurgeOrderingResponse:
        found = self._deleted(request, context)
        count = len(self.stored[request.name])
        if not request.validate_only:
            del self.stored[request.name]
            self.note(found, ordering_pb2.CHANGE_TYPE_PURGED)
        return ordering_service_pb2.PurgeOrderingResponse(purged_revisions=count)

    def _deleted(self, request: Any, context: grpc.ServicerContext) -> ordering_pb2.Ordering:
        found = self.guard(request, context, show_deleted=True)
        if not self.is_deleted(request.name):
            message = f"{request.name} is not deleted: delete it first"
            refuse(context, grpc.StatusCode.FAILED_PRECONDITION, message, "ORDERING_NOT_DELETED")
        return found

    def RollbackOrdering(  # noqa: N802
        self, request: ordering_service_pb2.RollbackOrderingRequest, context: grpc.ServicerContext
    ) -> ordering_pb2.Ordering:
        self.guard(request, context)
        source = self.find(f"{request.name}@{request.revision}", context)
        made = self.add(request.name, source, ordering_pb2.CHANGE_TYPE_UPDATED, "rolled_back")
        made.provenance.source = f"{request.name}@{source.revision_number}"
        return made

    def TagRevision(  # noqa: N802
        self, request: ordering_service_pb2.TagRevisionRequest, context: grpc.ServicerContext
    ) -> ordering_pb2.Ordering:
        newest = self.guard(request, context)
        found = self.find(f"{request.name}@{request.revision}", context) if request.HasField("revision") else newest
        self._drop_tag(request)
        found.tags.append(request.tag)
        self.note(newest, ordering_pb2.CHANGE_TYPE_TAGGED, request.tag, found.revision_number)
        return found

    def UntagRevision(  # noqa: N802
        self, request: ordering_service_pb2.UntagRevisionRequest, context: grpc.ServicerContext
    ) -> ordering_pb2.Ordering:
        newest = self.guard(request, context)
        if not self._drop_tag(request):
            refuse(context, grpc.StatusCode.NOT_FOUND, f"{request.name} has no tag {request.tag}", "TAG_NOT_FOUND")
        self.note(newest, ordering_pb2.CHANGE_TYPE_TAGGED, request.tag)
        return newest

    def _drop_tag(self, request: Any) -> bool:
        tagged = [stored for stored in self.stored[request.name] if request.tag in stored.tags]
        for stored in tagged:
            stored.tags.remove(request.tag)
        return bool(tagged)

    def DiffOrderings(  # noqa: N802
        self, request: ordering_service_pb2.DiffOrderingsRequest, context: grpc.ServicerContext
    ) -> ordering_service_pb2.DiffOrderingsResponse:
        self.seen.append(request)
        before, after = (self.find(name, context).document for name in (request.before, request.after))
        answer = ordering_service_pb2.DiffOrderingsResponse(same_file=before == after)
        if before.base_model_id != after.base_model_id:
            left, right = json.dumps(before.base_model_id), json.dumps(after.base_model_id)
            answer.differences.add(field="base_model_id", before=left, after=right)
        for index in range(max(len(before.order.names), len(after.order.names))):
            names = [side.order.names[index : index + 1] for side in (before, after)]
            if names[0] != names[1]:
                values = [json.dumps(name[0]) if name else None for name in names]
                answer.differences.add(field=f"order[{index}]", before=values[0], after=values[1])
        answer.text = "\n".join(f"{entry.field}: {entry.before} -> {entry.after}" for entry in answer.differences)
        return answer

    def WatchOrderings(  # noqa: N802
        self, request: ordering_service_pb2.WatchOrderingsRequest, context: grpc.ServicerContext
    ) -> Iterator[ordering_service_pb2.WatchOrderingsResponse]:
        self.seen.append(request)
        if request.HasField("after_sequence") and request.after_sequence > len(self.changes):
            message = f"after_sequence is {request.after_sequence}, but there are {len(self.changes)} changes"
            refuse(context, grpc.StatusCode.INVALID_ARGUMENT, message, "INVALID_REQUEST")
        context.add_callback(self.watch_ended.set)
        position = request.after_sequence if request.HasField("after_sequence") else len(self.changes)
        left = self.losses.pop(0) if self.losses else None
        yield ordering_service_pb2.WatchOrderingsResponse(sequence=position)
        while context.is_active():
            if left == 0:
                refuse(context, grpc.StatusCode.UNAVAILABLE, "draining", "DRAINING")
            # Two changes a message, so that a client that gives them out one by one is seen.
            batch = self.changes[position : position + 2]
            position += len(batch)
            wanted = [change for change in batch if not request.names or change.name in request.names]
            if batch:
                yield ordering_service_pb2.WatchOrderingsResponse(changes=wanted, sequence=position)
                left = None if left is None else left - 1
                continue
            with self.changed:
                if len(self.changes) == position:
                    self.changed.wait(timeout=0.02)
