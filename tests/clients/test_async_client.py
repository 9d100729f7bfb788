"""The asynchronous client: the same surface as the blocking one, and the same answers."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from loramux.client import (
    AnswerStream,
    AsyncAnswerStream,
    AsyncClient,
    AsyncOrderingWatch,
    Client,
    OrderingDocument,
    OrderingWatch,
    XLoRA,
    errors,
)
from loramux.client.asynchronous.adapters import AsyncAdapterApi
from loramux.client.asynchronous.orderings import AsyncOrderingApi
from loramux.client.blocking.adapters import AdapterApi
from loramux.client.blocking.orderings import OrderingApi
from tests.clients.fakes import FakeServices

PAIRS = [
    (Client, AsyncClient),
    (AdapterApi, AsyncAdapterApi),
    (OrderingApi, AsyncOrderingApi),
    (AnswerStream, AsyncAnswerStream),
    (OrderingWatch, AsyncOrderingWatch),
]
STREAMS = ("stream", "watch")


@pytest_asyncio.fixture
async def client(services: FakeServices) -> AsyncIterator[AsyncClient]:
    """An asynchronous client of both fakes."""
    async with AsyncClient(services.address, ordering=services.address) as connected:
        yield connected


def _surface(kind: type) -> dict[str, Any]:
    return {name: member for name, member in vars(kind).items() if not name.startswith("_")}


@pytest.mark.parametrize(("blocking", "asynchronous"), PAIRS)
def test_both_clients_have_the_same_methods_with_the_same_parameters(blocking: type, asynchronous: type) -> None:
    left, right = _surface(blocking), _surface(asynchronous)
    assert list(left) == list(right)
    for name, member in left.items():
        twin = right[name]
        assert isinstance(member, property) == isinstance(twin, property), name
        if isinstance(member, property):
            continue
        ours, theirs = inspect.signature(member), inspect.signature(twin)
        assert list(ours.parameters.values()) == list(theirs.parameters.values()), name
        assert theirs.return_annotation == ours.return_annotation or name in STREAMS, name
        assert inspect.iscoroutinefunction(twin) == (name not in STREAMS), name
        assert inspect.getdoc(member) == inspect.getdoc(twin), name


def test_both_clients_are_made_the_same_way() -> None:
    assert inspect.signature(Client.__init__) == inspect.signature(AsyncClient.__init__)


async def test_an_answer_streams_and_is_whole_afterwards(client: AsyncClient) -> None:
    stream = client.stream("a b c", adapters="pirate")
    assert (await stream.started()).adapters[0].name == "pirate"
    assert [piece.text async for piece in stream] == ["c", " b", " a"]
    assert (await stream.generation()).text == "c b a"


async def test_many_answers_run_at_once(client: AsyncClient) -> None:
    answers = await asyncio.gather(*(client.generate(f"x {index}") for index in range(8)))
    assert [answer.text for answer in answers] == [f"{index} x" for index in range(8)]


async def test_scalings_are_recorded(client: AsyncClient) -> None:
    answer = await client.generate("a bb", adapters=XLoRA("demo"), scalings="mean")
    record = await client.record_scalings("a bb", answer)
    assert record.values.shape == (3, 1, 3)
    assert record.token_ids == (101, 102, 102)


async def test_leaving_a_loop_early_cancels_the_request(client: AsyncClient, services: FakeServices) -> None:
    async for _ in client.stream("forever"):
        break
    assert await asyncio.to_thread(services.inference.ended.wait, 10)


async def test_cancelling_the_task_cancels_the_request(client: AsyncClient, services: FakeServices) -> None:
    task = asyncio.create_task(client.generate("forever"))
    while not services.inference.requests:
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await asyncio.to_thread(services.inference.ended.wait, 10)


async def test_closing_ends_the_iteration_and_the_request(client: AsyncClient, services: FakeServices) -> None:
    async with client.stream("forever") as stream:
        await anext(stream)
    assert [piece async for piece in stream] == []
    assert await asyncio.to_thread(services.inference.ended.wait, 10)


async def test_a_deadline_ends_an_answer_that_does_not_end(client: AsyncClient) -> None:
    with pytest.raises(errors.DeadlineExceeded):
        await client.generate("forever", timeout=0.2)


async def test_errors_are_typed_with_reason_and_violations(client: AsyncClient) -> None:
    with pytest.raises(errors.NotFound) as missing:
        await client.generate("hi", adapters="nobody")
    assert missing.value.reason == "ADAPTER_NOT_FOUND"
    with pytest.raises(errors.InvalidArgument) as wrong:
        await client.generate("hi", adapters="wrong")
    assert len(wrong.value.violations) == 2
    with pytest.raises(errors.NotFound):
        await client.adapters.get("nobody")


async def test_pages_are_followed(client: AsyncClient) -> None:
    for name in ("a", "b", "c"):
        await client.adapters.load(name, "/roots")
        await client.orderings.create(name, OrderingDocument(base_model_id="m"))
    assert [adapter.name for adapter in await client.adapters.list()] == ["a", "b", "c"]
    assert [ordering.id for ordering in await client.orderings.list()] == ["a", "b", "c"]
    assert (await client.model()).architecture == "llama"
    assert (await client.tokenize([{"role": "user", "content": "hi"}])).rendered == "<user>hi"
    assert await client.detokenize([1, 2]) == " t1 t2"


async def test_reads_are_retried_while_the_service_is_away_for_a_moment(
    client: AsyncClient, services: FakeServices
) -> None:
    services.inference.unavailable = 2
    assert (await client.model()).quantization == "Q4_1"
