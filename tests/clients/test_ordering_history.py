"""Both clients' calls that go back in time, and writes that happen once."""

from __future__ import annotations

import asyncio
import uuid

import pytest

from loramux.client import AdapterKind, AsyncClient, Client, Difference, OrderingDocument, errors
from tests.clients.fakes import FakeServices

REQUEST_ID = "7d444840-9dc0-11d1-b245-5ffdce74fad2"


def document(*order: str) -> OrderingDocument:
    """A small document with these adapter names."""
    return OrderingDocument(base_model_id="base", order=order)


@pytest.fixture
def demo(client: Client) -> Client:
    """A client of a service that holds `demo` with two revisions."""
    client.orderings.create("demo", document("a"))
    client.orderings.update("demo", document=document("a", "b"))
    return client


def test_a_deleted_ordering_is_shown_on_demand_and_comes_back(demo: Client) -> None:
    there = demo.orderings.get("demo")
    assert there.delete_time is None
    assert demo.orderings.delete("demo", etag="etag-2") == there
    with pytest.raises(errors.NotFound):
        demo.orderings.get("demo")
    assert demo.orderings.list() == ()
    gone = demo.orderings.get("demo", show_deleted=True)
    assert gone.delete_time is not None
    assert demo.orderings.list(show_deleted=True) == (gone,)
    assert len(demo.orderings.revisions("demo", show_deleted=True)) == 2
    assert demo.orderings.undelete("demo").delete_time is None
    assert demo.orderings.get("demo").revision_number == 2


def test_purging_counts_the_revisions_and_needs_a_deleted_ordering(demo: Client) -> None:
    with pytest.raises(errors.FailedPrecondition, match="delete it first"):
        demo.orderings.purge("demo")
    demo.orderings.delete("demo")
    assert demo.orderings.purge("demo", validate_only=True) == 2
    assert demo.orderings.purge("demo", etag="etag-2") == 2
    with pytest.raises(errors.NotFound):
        demo.orderings.get("demo", show_deleted=True)


def test_a_roll_back_is_a_new_revision_that_says_where_it_came_from(demo: Client) -> None:
    demo.orderings.tag("demo", "good", 1)
    for revision in (1, "1", "good"):
        rolled = demo.orderings.rollback("demo", revision)
        assert rolled.document == document("a")
        assert (rolled.provenance.method, rolled.provenance.source) == ("rolled_back", "orderings/demo@1")
    assert rolled.revision_number == 5
    with pytest.raises(errors.NotFound):
        demo.orderings.rollback("demo", 9)


def test_a_tag_moves_and_goes(demo: Client) -> None:
    assert demo.orderings.tag("demo", "prod").revision_number == 2
    assert demo.orderings.tag("demo@1", "prod").tags == ("prod",)
    assert demo.orderings.get("demo@prod").revision_number == 1
    assert demo.orderings.tag("demo", "prod", revision=2).revision_number == 2
    with pytest.raises(errors.InvalidArgument, match="has one already"):
        demo.orderings.tag("demo@1", "prod", 2)
    assert demo.orderings.untag("demo", "prod").tags == ()
    with pytest.raises(errors.NotFound, match="no tag prod"):
        demo.orderings.untag("demo", "prod")


def test_two_revisions_are_compared_field_by_field(demo: Client) -> None:
    demo.orderings.create("other", OrderingDocument(base_model_id="else", order=("c",)))
    diff = demo.orderings.diff("demo@2", "other")
    assert diff.differences == (
        Difference("base_model_id", '"base"', '"else"'),
        Difference("order[0]", '"a"', '"c"'),
        Difference("order[1]", '"b"', None),
    )
    assert not diff.same_file
    assert diff.text.startswith("base_model_id")
    same = demo.orderings.diff("demo", "orderings/demo@2")
    assert (same.differences, same.same_file) == ((), True)


def test_lists_pass_filter_and_order_on_to_every_page(client: Client, services: FakeServices) -> None:
    for name in ("a", "b"):
        client.orderings.create(name, document())
    assert len(client.orderings.list('labels.team = "nlp"', order_by="update_time desc")) == 2
    asked = [(request.filter, request.order_by) for request in services.ordering.seen[-2:]]
    assert asked == [('labels.team = "nlp"', "update_time desc")] * 2


def test_a_write_is_sent_again_with_the_same_id_while_the_service_is_away(
    client: Client, services: FakeServices
) -> None:
    services.ordering.stumbles = 2
    client.orderings.create("demo", document("a"), kind=AdapterKind.LORA)
    client.orderings.update("demo", description="x")
    ids = [request.request_id for request in services.ordering.seen]
    assert ids[0] == ids[1] == ids[2] != ids[3]
    assert len(services.ordering.stored["orderings/demo"]) == 2


def test_a_service_that_stays_away_is_an_error_in_the_end(client: Client, services: FakeServices) -> None:
    services.ordering.stumbles = 1000
    with pytest.raises(errors.Unavailable, match="draining"):
        client.orderings.create("demo", document())
    assert 3 <= len(services.ordering.seen) <= 6


def test_the_caller_may_give_the_id_and_ask_for_the_answer_alone(client: Client, services: FakeServices) -> None:
    client.orderings.create("demo", document(), request_id=REQUEST_ID, validate_only=True)
    client.orderings.import_file(b'{"base_model_id": "m"}', "file", labels={"k": "v"}, request_id=REQUEST_ID)
    created, imported = services.ordering.seen
    assert (created.request_id, created.validate_only) == (REQUEST_ID, True)
    assert (imported.request_id, imported.validate_only) == (REQUEST_ID, False)
    assert client.orderings.get("file").labels == {"k": "v"}


async def test_the_asynchronous_client_goes_back_in_time_too(services: FakeServices) -> None:
    async with AsyncClient(services.address, ordering=services.address) as client:
        await client.orderings.create("demo", document("a"))
        services.ordering.stumbles = 1
        await client.orderings.update("demo", document=document("b"))
        ids = [request.request_id for request in services.ordering.seen[1:]]
        assert ids[0] == ids[1]
        assert uuid.UUID(ids[0])
        assert (await client.orderings.rollback("demo", 1)).revision_number == 3
        assert (await client.orderings.tag("demo", "prod")).tags == ("prod",)
        assert (await client.orderings.untag("demo", "prod")).tags == ()
        assert len((await client.orderings.diff("demo@1", "demo@2")).differences) == 1
        await client.orderings.delete("demo")
        assert (await client.orderings.undelete("demo")).id == "demo"
        await client.orderings.delete("demo")
        assert await client.orderings.purge("demo") == 3
        await asyncio.gather(*(client.orderings.create(f"o{index}", document()) for index in range(4)))
        assert len(await client.orderings.list()) == 4
