"""The calls of the ordering service that go back in time: undelete, purge, roll back, tag, compare."""

from __future__ import annotations

from loramux.client.calls import ORDERINGS, AnyCall, Call
from loramux.client.ordering_calls import WriteOptions, write_fields
from loramux.client.ordering_history import OrderingDiff, diff_from_proto
from loramux.client.orderings import Ordering, ordering_from_proto, ordering_resource
from loramux.ordering.v1 import ordering_pb2, ordering_service_pb2


def undelete_ordering(name: str, etag: str | None, options: WriteOptions) -> AnyCall[Ordering]:
    """Brings a deleted ordering back."""
    request = ordering_service_pb2.UndeleteOrderingRequest(
        name=ordering_resource(name), etag=etag, **write_fields(options)
    )
    return Call(ORDERINGS + "UndeleteOrdering", request, ordering_pb2.Ordering, ordering_from_proto)


def purge_ordering(name: str, etag: str | None, options: WriteOptions) -> AnyCall[int]:
    """Removes a deleted ordering for good; returns the number of its revisions."""
    return Call(
        ORDERINGS + "PurgeOrdering",
        ordering_service_pb2.PurgeOrderingRequest(name=ordering_resource(name), etag=etag, **write_fields(options)),
        ordering_service_pb2.PurgeOrderingResponse,
        lambda answer: answer.purged_revisions,
    )


def rollback_ordering(name: str, revision: str | int, etag: str | None, options: WriteOptions) -> AnyCall[Ordering]:
    """Makes the document of an earlier revision the newest one."""
    request = ordering_service_pb2.RollbackOrderingRequest(
        name=ordering_resource(name), revision=str(revision), etag=etag, **write_fields(options)
    )
    return Call(ORDERINGS + "RollbackOrdering", request, ordering_pb2.Ordering, ordering_from_proto)


def tag_revision(
    name: str, tag: str, revision: str | int | None, etag: str | None, options: WriteOptions
) -> AnyCall[Ordering]:
    """Points a tag at a revision; without one at the newest. The revision may also be part of the name."""
    # The full resource name says what a mixed-up `demo@3` and revision=4 is; its parts go into fields of their own.
    bare, _, named = ordering_resource(name, revision).partition("@")
    request = ordering_service_pb2.TagRevisionRequest(
        name=bare, tag=tag, revision=named or None, etag=etag, **write_fields(options)
    )
    return Call(ORDERINGS + "TagRevision", request, ordering_pb2.Ordering, ordering_from_proto)


def untag_revision(name: str, tag: str, etag: str | None, options: WriteOptions) -> AnyCall[Ordering]:
    """Takes a tag away."""
    request = ordering_service_pb2.UntagRevisionRequest(
        name=ordering_resource(name), tag=tag, etag=etag, **write_fields(options)
    )
    return Call(ORDERINGS + "UntagRevision", request, ordering_pb2.Ordering, ordering_from_proto)


def diff_orderings(before: str, after: str) -> AnyCall[OrderingDiff]:
    """Compares two revisions, of one ordering or of two."""
    return Call(
        ORDERINGS + "DiffOrderings",
        ordering_service_pb2.DiffOrderingsRequest(before=ordering_resource(before), after=ordering_resource(after)),
        ordering_service_pb2.DiffOrderingsResponse,
        diff_from_proto,
    )
