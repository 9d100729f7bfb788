"""Watching: every change once and in order, whatever happens to the stream."""

from __future__ import annotations

import asyncio
import itertools
import threading
from contextlib import suppress

import pytest

from loramux.client import (
    AsyncClient,
    ChangeType,
    Client,
    LoramuxError,
    OrderingChange,
    OrderingDocument,
    OrderingWatch,
    errors,
)
from loramux.client.changes import ChangeReader
from loramux.ordering.v1 import ordering_pb2, ordering_service_pb2
from tests.clients.fakes import FakeServices

DOCUMENT = OrderingDocument(base_model_id="m")


def take(watch: OrderingWatch, count: int) -> list[OrderingChange]:
    """The next changes."""
    return list(itertools.islice(watch, count))


def make_changes(client: Client, count: int) -> None:
    """Creates `o1`, `o2`, ..."""
    for number in range(1, count + 1):
        client.orderings.create(f"o{number}", DOCUMENT)


def test_changes_from_the_beginning_come_with_every_field(client: Client) -> None:
    make_changes(client, 1)
    client.orderings.tag("o1", "prod")
    client.orderings.untag("o1", "prod")
    client.orderings.delete("o1")
    with client.orderings.watch(after=0) as watch:
        changes = take(watch, 4)
    assert [change.type for change in changes] == [
        ChangeType.CREATED,
        ChangeType.TAGGED,
        ChangeType.TAGGED,
        ChangeType.DELETED,
    ]
    assert [change.sequence for change in changes] == [1, 2, 3, 4]
    assert [(change.tag, change.tagged_revision_number) for change in changes[:3]] == [
        (None, None),
        ("prod", 1),
        ("prod", None),
    ]
    first = changes[0]
    assert (first.id, first.revision_number, first.revision_id, first.etag) == ("o1", 1, "r1", "etag-1")
    assert first.change_time.timestamp() == 1_700_000_001


def test_without_a_sequence_it_starts_now(client: Client) -> None:
    make_changes(client, 1)
    with client.orderings.watch() as watch:
        assert watch.started() == 1
        client.orderings.update("o1", description="x")
        assert [(change.sequence, change.type) for change in take(watch, 1)] == [(2, ChangeType.UPDATED)]
        assert watch.sequence == 2


def test_only_the_orderings_asked_for_are_watched(client: Client) -> None:
    make_changes(client, 5)
    with client.orderings.watch(["o2", "orderings/o5"], after=0) as watch:
        assert [change.id for change in take(watch, 2)] == ["o2", "o5"]
    with pytest.raises(errors.InvalidArgument, match="a list of names"):
        client.orderings.watch("o2")


def test_a_lost_stream_is_resumed_without_gap_or_repeat(client: Client, services: FakeServices) -> None:
    make_changes(client, 9)
    services.ordering.losses = [1, 0, 2, 0]
    outages: list[LoramuxError] = []
    with client.orderings.watch(after=0, on_outage=outages.append) as watch:
        assert [change.sequence for change in take(watch, 9)] == list(range(1, 10))
    asked = [
        request.after_sequence
        for request in services.ordering.seen
        if isinstance(request, ordering_service_pb2.WatchOrderingsRequest)
    ]
    assert asked[0] == 0
    assert asked == sorted(asked)
    assert all(isinstance(outage, errors.Unavailable) for outage in outages)
    assert outages


def test_the_sequence_is_that_of_what_was_given_out_so_that_another_process_can_go_on(client: Client) -> None:
    make_changes(client, 4)
    with client.orderings.watch(after=0) as first:
        assert [change.sequence for change in take(first, 3)] == [1, 2, 3]
        with client.orderings.watch(after=first.sequence) as second:
            assert [change.sequence for change in take(second, 1)] == [4]


def test_a_service_that_was_never_there_and_a_wrong_sequence_are_errors(client: Client) -> None:
    with (
        Client("127.0.0.1:1", ordering="127.0.0.1:1") as lost,
        pytest.raises(errors.Unavailable, match="no service answers"),
    ):
        next(lost.orderings.watch())
    watch = client.orderings.watch(after=7)
    with pytest.raises(errors.InvalidArgument, match="there are 0 changes"):
        next(watch)
    assert list(watch) == []


def test_an_outage_longer_than_allowed_is_an_error() -> None:
    reader = ChangeReader(after=0, max_outage_s=0.0)
    reader.feed(ordering_service_pb2.WatchOrderingsResponse(sequence=1))
    lost = errors.Unavailable(errors.Failure("UNAVAILABLE", "away"))
    assert reader.pause_after(lost) > 0
    with pytest.raises(errors.Unavailable, match="away"):
        reader.pause_after(lost)


def test_pauses_grow_and_a_message_ends_the_outage() -> None:
    told: list[LoramuxError] = []
    reader = ChangeReader(after=3, on_outage=told.append)
    reader.feed(ordering_service_pb2.WatchOrderingsResponse(sequence=3))
    lost = errors.Unavailable(errors.Failure("UNAVAILABLE", "away"))
    pauses = [reader.pause_after(lost) for _ in range(9)]
    assert pauses == sorted(pauses)
    assert (pauses[0], pauses[-1]) == (0.1, 5.0)
    assert told == [lost]
    reader.feed(ordering_service_pb2.WatchOrderingsResponse(sequence=3))
    assert reader.pause_after(None) == 0.1
    assert told[1].reason == "STREAM_ENDED"
    with pytest.raises(errors.Internal):
        reader.pause_after(errors.Internal(errors.Failure("INTERNAL", "broken")))


def test_a_change_that_is_sent_twice_is_given_out_once() -> None:
    reader = ChangeReader(after=0)
    changes = [
        ordering_pb2.OrderingChange(sequence=number, type=ordering_pb2.CHANGE_TYPE_CREATED) for number in (1, 2, 3)
    ]
    reader.feed(ordering_service_pb2.WatchOrderingsResponse(changes=changes[:2], sequence=2))
    reader.feed(ordering_service_pb2.WatchOrderingsResponse(changes=changes, sequence=3))
    given = [change.sequence for change in iter(reader.take, None)]
    assert given == [1, 2, 3]
    unknown = ordering_pb2.OrderingChange(sequence=4, type=77)  # type: ignore[arg-type]  # of a newer service
    with pytest.raises(errors.Internal, match="unknown change type 77"):
        reader.feed(ordering_service_pb2.WatchOrderingsResponse(changes=[unknown], sequence=4))


def test_closing_from_another_thread_ends_the_iteration_and_the_call(client: Client, services: FakeServices) -> None:
    watch = client.orderings.watch()
    watch.started()
    threading.Timer(0.05, watch.close).start()
    assert list(watch) == []
    assert services.ordering.watch_ended.wait(10)


def test_dropping_a_watch_ends_its_call(client: Client, services: FakeServices) -> None:
    make_changes(client, 1)
    for _ in client.orderings.watch(after=0):
        break
    assert services.ordering.watch_ended.wait(10)


async def test_the_asynchronous_watch_resumes_too(services: FakeServices) -> None:
    async with AsyncClient(services.address, ordering=services.address) as client:
        for number in range(1, 8):
            await client.orderings.create(f"o{number}", DOCUMENT)
        services.ordering.losses = [1, 0, 2]
        got: list[int] = []
        async with client.orderings.watch(after=0) as watch:
            assert await watch.started() == 0
            async for change in watch:
                got.append(change.sequence)
                if len(got) == 7:
                    break
        assert got == [1, 2, 3, 4, 5, 6, 7]
        assert watch.sequence == 7
        assert [change async for change in watch] == []
        with pytest.raises(errors.InvalidArgument):
            await anext(client.orderings.watch(after=99))


async def test_closing_or_cancelling_an_asynchronous_watch_ends_its_call(services: FakeServices) -> None:
    async with AsyncClient(services.address, ordering=services.address) as client:
        watch = client.orderings.watch()
        await watch.started()
        waiting = asyncio.create_task(anext(watch, None))
        await asyncio.sleep(0.05)
        await watch.close()
        assert await waiting is None
        assert await asyncio.to_thread(services.ordering.watch_ended.wait, 10)
        watch = client.orderings.watch()
        await watch.started()
        task = asyncio.ensure_future(anext(watch))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        with suppress(StopAsyncIteration):
            await watch.close()
