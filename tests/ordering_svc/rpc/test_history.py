"""History over a real server: tags, undoing, diffs, filters, writes that happen once."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message

from tests.ordering_svc.rpc.conftest import Service, failure_of
from tests.ordering_svc.rpc.test_server import FILE, P, S, create, document, imported, name

INVALID, NOT_FOUND = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND
PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION


async def test_an_earlier_revision_is_tagged_compared_and_rolled_back_to(service: Service) -> None:
    stub = service.stub
    first = await stub.ImportOrdering(imported(labels=P.Labels(labels={"team": "nlp"})))
    await stub.UpdateOrdering(S.UpdateOrderingRequest(**name(), document=document("other")))
    tagged = await stub.TagRevision(S.TagRevisionRequest(**name(), tag="prod", revision="1"))
    assert (list(tagged.tags), tagged.revision_number, dict(tagged.labels)) == (["prod"], 1, {"team": "nlp"})
    by_tag = await stub.ExportOrdering(S.ExportOrderingRequest(name="orderings/demo@prod"))
    assert by_tag.json == FILE

    diff = await stub.DiffOrderings(S.DiffOrderingsRequest(before="orderings/demo@prod", after="orderings/demo"))
    assert [(d.field, d.HasField("before"), d.HasField("after")) for d in diff.differences[:2]] == [
        ("order[0]", True, True),
        ("order[1]", True, False),
    ]
    assert (diff.same_file, diff.text.splitlines()[0]) == (False, 'order[0]: "mäth" -> "other"')

    back = await stub.RollbackOrdering(S.RollbackOrderingRequest(**name(), revision="prod", etag=tagged.etag))
    assert (back.revision_number, back.revision_id, back.document) == (3, first.revision_id, first.document)
    assert (back.provenance.method, back.provenance.source) == ("rolled_back", "orderings/demo@1")
    assert back.provenance.service_version
    assert await stub.RollbackOrdering(S.RollbackOrderingRequest(**name(), revision="1")) == back
    same = await stub.DiffOrderings(S.DiffOrderingsRequest(before="orderings/demo@1", after="orderings/demo@3"))
    assert (list(same.differences), same.text, same.same_file) == ([], "", True)
    untagged = await stub.UntagRevision(S.UntagRevisionRequest(**name(), tag="prod"))
    assert (list(untagged.tags), untagged.revision_number) == ([], 1)


async def test_a_deleted_ordering_comes_back_or_is_purged(service: Service) -> None:
    stub = service.stub
    made = await stub.CreateOrdering(create())
    await stub.DeleteOrdering(S.DeleteOrderingRequest(**name(), etag=made.etag))
    shown = await stub.GetOrdering(S.GetOrderingRequest(**name(), show_deleted=True))
    assert (shown.HasField("delete_time"), shown.document) == (True, made.document)
    assert not (await stub.ListOrderings(S.ListOrderingsRequest())).orderings
    assert list((await stub.ListOrderings(S.ListOrderingsRequest(show_deleted=True))).orderings) == [shown]
    revisions = await stub.ListOrderingRevisions(S.ListOrderingRevisionsRequest(**name(), show_deleted=True))
    assert list(revisions.revisions) == [shown]

    back = await stub.UndeleteOrdering(S.UndeleteOrderingRequest(**name(), etag=shown.etag))
    assert not back.HasField("delete_time")
    await stub.DeleteOrdering(S.DeleteOrderingRequest(**name()))
    purged = await stub.PurgeOrdering(S.PurgeOrderingRequest(**name()))
    assert purged.purged_revisions == 1
    assert (await stub.CreateOrdering(create())).revision_number == 1


async def test_lists_are_filtered_and_sorted_and_their_tokens_bound_to_that(service: Service) -> None:
    stub = service.stub
    for ordering_id, team in (("c", "x"), ("a", "y"), ("b", "x")):
        await stub.CreateOrdering(create(ordering_id, labels={"team": team}))
    wanted = {"filter": "labels.team = x", "order_by": "create_time desc", "page_size": 1}
    page = await stub.ListOrderings(S.ListOrderingsRequest(**wanted))
    assert [o.name for o in page.orderings] == ["orderings/b"]
    rest = await stub.ListOrderings(S.ListOrderingsRequest(**wanted, page_token=page.next_page_token))
    assert ([o.name for o in rest.orderings], rest.next_page_token) == (["orderings/c"], "")
    for other in ({"filter": ""}, {"order_by": "create_time"}, {"show_deleted": True}):
        changed = S.ListOrderingsRequest(**(wanted | other), page_token=page.next_page_token)
        assert (await failure_of(stub.ListOrderings(changed))).reason == "INVALID_PAGE_TOKEN"


def uuid4() -> str:
    return str(uuid.uuid4())


WRITES: list[tuple[str, Any]] = [
    ("CreateOrdering", create("new")),
    ("UpdateOrdering", S.UpdateOrderingRequest(**name(), document=document("x"), description="d")),
    ("DeleteOrdering", S.DeleteOrderingRequest(**name())),
    ("UndeleteOrdering", S.UndeleteOrderingRequest(name="orderings/gone")),
    ("PurgeOrdering", S.PurgeOrderingRequest(name="orderings/gone")),
    ("RollbackOrdering", S.RollbackOrderingRequest(**name(), revision="1")),
    ("TagRevision", S.TagRevisionRequest(**name(), tag="new-tag")),
    ("UntagRevision", S.UntagRevisionRequest(**name(), tag="prod")),
    ("ImportOrdering", imported(ordering_id="new")),
    ("ImportOrdering", imported(allow_existing=True)),
]


@pytest.mark.parametrize(("method", "request_message"), WRITES)
async def test_a_write_is_tried_then_done_once_however_often_it_is_sent(
    service: Service, method: str, request_message: Any
) -> None:
    stub = service.stub
    await stub.CreateOrdering(create())
    await stub.UpdateOrdering(S.UpdateOrderingRequest(**name(), document=document("b")))
    await stub.TagRevision(S.TagRevisionRequest(**name(), tag="prod"))
    await stub.CreateOrdering(create("gone"))
    await stub.DeleteOrdering(S.DeleteOrderingRequest(name="orderings/gone"))
    call = getattr(stub, method)
    every = S.ListOrderingsRequest(show_deleted=True)
    before = await stub.ListOrderings(every)

    request = type(request_message)()
    request.CopyFrom(request_message)
    request.request_id = uuid4()
    request.validate_only = True
    await call(request)
    assert await stub.ListOrderings(every) == before
    request.validate_only = False
    answers = await asyncio.gather(*(call(request) for _ in range(4)))
    assert all(answer == answers[0] for answer in answers)
    after = await stub.ListOrderings(every)
    assert after != before
    request.request_id = request.request_id.upper()
    assert await call(request) == answers[0]
    assert await stub.ListOrderings(every) == after
    other = S.TagRevisionRequest(**name(), tag="another", request_id=request.request_id)
    failure = await failure_of(stub.TagRevision(other))
    assert (failure.code, failure.details["BadRequest"].field_violations[0].field) == (INVALID, "request_id")


@pytest.mark.parametrize(
    ("method", "request_message", "code", "reason"),
    [
        ("TagRevision", S.TagRevisionRequest(**name(), tag="decade"), INVALID, "INVALID_NAME"),
        ("TagRevision", S.TagRevisionRequest(**name(), tag="Prod"), INVALID, "INVALID_REQUEST"),
        ("TagRevision", S.TagRevisionRequest(**name(), tag="prod", revision="7"), NOT_FOUND, "REVISION_NOT_FOUND"),
        ("TagRevision", S.TagRevisionRequest(**name(), tag="prod", revision="?"), INVALID, "INVALID_NAME"),
        ("TagRevision", S.TagRevisionRequest(name="orderings/x", tag="prod"), NOT_FOUND, "ORDERING_NOT_FOUND"),
        ("UntagRevision", S.UntagRevisionRequest(**name(), tag="prod"), NOT_FOUND, "TAG_NOT_FOUND"),
        ("GetOrdering", S.GetOrderingRequest(name="orderings/demo@prod"), NOT_FOUND, "REVISION_NOT_FOUND"),
        ("RollbackOrdering", S.RollbackOrderingRequest(**name(), revision="9"), NOT_FOUND, "REVISION_NOT_FOUND"),
        ("RollbackOrdering", S.RollbackOrderingRequest(**name()), INVALID, "INVALID_REQUEST"),
        ("UndeleteOrdering", S.UndeleteOrderingRequest(**name()), PRECONDITION, "ORDERING_NOT_DELETED"),
        ("PurgeOrdering", S.PurgeOrderingRequest(**name()), PRECONDITION, "ORDERING_NOT_DELETED"),
        ("PurgeOrdering", S.PurgeOrderingRequest(name="orderings/x"), NOT_FOUND, "ORDERING_NOT_FOUND"),
        ("DiffOrderings", S.DiffOrderingsRequest(before="orderings/demo", after="orderings/x"), NOT_FOUND, None),
        ("ListOrderings", S.ListOrderingsRequest(filter="kind ="), INVALID, "INVALID_REQUEST"),
        ("ListOrderings", S.ListOrderingsRequest(order_by="kind"), INVALID, "INVALID_REQUEST"),
        ("DeleteOrdering", S.DeleteOrderingRequest(**name(), request_id="no uuid"), INVALID, "INVALID_REQUEST"),
        ("DeleteOrdering", S.DeleteOrderingRequest(**name(), etag='"9-0"'), grpc.StatusCode.ABORTED, "ETAG_MISMATCH"),
        ("UntagRevision", S.UntagRevisionRequest(**name(), tag="a", etag=""), grpc.StatusCode.ABORTED, None),
    ],
)
async def test_each_bad_request_has_its_code_and_reason(
    service: Service, method: str, request_message: Message, code: grpc.StatusCode, reason: str | None
) -> None:
    await service.stub.CreateOrdering(create())
    failure = await failure_of(getattr(service.stub, method)(request_message))
    assert (failure.code, failure.reason) == (code, reason or failure.reason)
    if code is grpc.StatusCode.ABORTED:
        assert failure.details["ErrorInfo"].metadata["current_etag"].startswith('"1-')


async def test_a_rollback_to_what_does_not_fit_any_more_is_refused(service: Service) -> None:
    await service.stub.CreateOrdering(create())
    layered = P.OrderingDocument(
        order=P.AdapterNames(names=["a"]), layers=P.LayerRows(rows=[P.LayerRow(path="x", row=0)]), base_model_id="m"
    )
    update = S.UpdateOrderingRequest(**name(), document=layered, kind=P.ADAPTER_KIND_XLORA)
    await service.stub.UpdateOrdering(update)
    failure = await failure_of(service.stub.RollbackOrdering(S.RollbackOrderingRequest(**name(), revision="1")))
    assert (failure.code, failure.reason) == (INVALID, "INVALID_ORDERING")
