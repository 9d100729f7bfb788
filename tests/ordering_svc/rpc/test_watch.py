"""Watches over a real server: from a resume point, without gaps or repeats, until the service drains."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import grpc
import pytest
from sqlalchemy.engine import URL

from loramux.ordering.v1 import ordering_service_pb2_grpc
from ordering_svc.domain.ordering import OrderingMetadata, Provenance
from ordering_svc.persistence.sql_store import SqlStore
from ordering_svc.persistence.store import NewFile
from tests.ordering_svc.rpc.conftest import Serve, Service, failure_of
from tests.ordering_svc.rpc.test_server import P, S, create, document, name

FILE = NewFile(b'{"base_model_id": "m"}', Provenance("written"))


def watch(service: Service, *names: str, **fields: Any) -> Any:
    return service.stub.WatchOrderings(S.WatchOrderingsRequest(names=names, **fields))


async def taken(call: Any, count: int) -> list[Any]:
    """The next changes of a watch."""
    changes: list[Any] = []
    while len(changes) < count:
        changes += (await call.read()).changes
    return changes


async def test_a_watch_begins_with_where_it_stands_and_tells_what_follows(service: Service) -> None:
    await service.stub.CreateOrdering(create("before"))
    call = watch(service)
    first = await call.read()
    assert (list(first.changes), first.sequence) == ([], 1)
    made = await service.stub.CreateOrdering(create())
    await service.stub.TagRevision(S.TagRevisionRequest(**name(), tag="prod"))
    created, tagged = await taken(call, 2)
    assert (created.sequence, created.type, created.name) == (2, P.CHANGE_TYPE_CREATED, made.name)
    assert (created.etag, created.revision_id, created.revision_number) == (made.etag, made.revision_id, 1)
    assert (tagged.type, tagged.tag, tagged.tagged_revision_number) == (P.CHANGE_TYPE_TAGGED, "prod", 1)
    call.cancel()


async def test_a_watch_goes_on_after_a_restart_where_it_was(serve: Serve) -> None:
    async with serve() as service:
        for number in range(3):
            await service.stub.CreateOrdering(create(f"o{number}"))
        channel = grpc.aio.insecure_channel(service.address)  # one that outlives the service
        stub: Any = ordering_service_pb2_grpc.OrderingServiceStub(channel)
        call = stub.WatchOrderings(S.WatchOrderingsRequest(after_sequence=0))
        assert [c.sequence for c in await taken(call, 3)] == [1, 2, 3]
    failure = await failure_of(call.read())
    await channel.close()
    assert (failure.code, failure.reason) == (grpc.StatusCode.UNAVAILABLE, "UNAVAILABLE")
    async with serve() as service:
        call = watch(service, after_sequence=2)
        await service.stub.CreateOrdering(create("o3"))
        assert [(c.sequence, c.name) for c in await taken(call, 2)] == [(3, "orderings/o2"), (4, "orderings/o3")]
        call.cancel()


async def test_a_watch_of_some_orderings_passes_over_the_others(service: Service) -> None:
    call = watch(service, "orderings/b", after_sequence=0)
    for ordering_id in ("a", "b", "c"):
        await service.stub.CreateOrdering(create(ordering_id))
    assert [c.name for c in await taken(call, 1)] == ["orderings/b"]
    call.cancel()


async def test_what_another_process_writes_is_told_too(serve: Serve, tmp_path: Path) -> None:
    async with serve(watch_poll_seconds=0.02) as service:
        call = watch(service)
        await call.read()
        other = SqlStore(URL.create("sqlite", database=str(tmp_path / "data" / "orderings.sqlite3")))
        await asyncio.to_thread(other.create, "theirs", OrderingMetadata(), FILE)
        assert [c.name for c in await taken(call, 1)] == ["orderings/theirs"]
        call.cancel()
        other.close()


async def test_a_silent_watch_gives_signs_of_life(serve: Serve) -> None:
    async with serve(watch_heartbeat_seconds=0.05) as service:
        call = watch(service)
        for _ in range(4):
            message = await call.read()
            assert (list(message.changes), message.sequence) == ([], 0)
        call.cancel()


@pytest.mark.parametrize(
    ("fields", "names", "field"),
    [
        ({"after_sequence": 1}, (), "after_sequence"),
        ({"after_sequence": -1}, (), "after_sequence"),
        ({}, ("orderings/a@1",), "names[0]"),
        ({}, ("orderings/No",), "name"),
    ],
)
async def test_a_watch_that_cannot_be_is_refused(
    service: Service, fields: dict[str, Any], names: tuple[str, ...], field: str
) -> None:
    failure = await failure_of(watch(service, *names, **fields).read())
    assert failure.code is grpc.StatusCode.INVALID_ARGUMENT
    assert failure.details["BadRequest"].field_violations[0].field == field


async def test_a_reader_that_takes_its_time_misses_nothing(service: Service) -> None:
    await service.stub.CreateOrdering(create())
    call = watch(service, after_sequence=0)
    for number in range(30):
        await service.stub.UpdateOrdering(S.UpdateOrderingRequest(**name(), document=document(f"n{number}")))
    await asyncio.sleep(0.2)
    assert [c.sequence for c in await taken(call, 31)] == list(range(1, 32))
    call.cancel()


async def test_a_watch_that_ends_leaves_no_task(service: Service) -> None:
    await service.stub.ListOrderings(S.ListOrderingsRequest())
    before = names_of_tasks()
    calls = [watch(service) for _ in range(10)]
    for call in calls:
        await call.read()
    assert any("_poll" in name_ for name_ in names_of_tasks())
    for call in calls:
        call.cancel()
    for _ in range(200):
        if not names_of_tasks() - before:
            return
        await asyncio.sleep(0.02)
    pytest.fail(f"still there: {sorted(names_of_tasks() - before)}")


def names_of_tasks() -> set[str]:
    """What each task runs, of those that are ours."""
    coroutines = [str(task.get_coro()) for task in asyncio.all_tasks()]
    return {coroutine for coroutine in coroutines if "ChangeFeed" in coroutine or "ContractInterceptor" in coroutine}
