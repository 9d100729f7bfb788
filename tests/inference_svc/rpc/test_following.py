"""Following orderings: changes are applied, failures are told and tried again, and harm nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from pathlib import Path

import pytest

from inference_svc.adapters.loading_threads import LoadingThreads
from inference_svc.adapters.ordering import AppliedOrdering, FetchedOrdering
from inference_svc.adapters.resident import ActiveSet
from inference_svc.adapters.selection import BaseSelection
from inference_svc.config import ConfigError, load_config
from inference_svc.errors import InferenceError, OrderingServiceUnavailable, OrderingUnfit
from inference_svc.rpc.ordering_copies import OrderingCopies
from inference_svc.rpc.ordering_desk import OrderingDesk
from inference_svc.rpc.ordering_follower import OrderingFollower
from loramux.ordering.v1 import ordering_pb2
from tests.inference_svc.rpc.fakes import FakeShelf


class MovingSource:
    """An ordering whose newest revision moves."""

    def __init__(self) -> None:
        self.revision = "1"
        self.is_away = False
        self._moved = asyncio.Event()

    def move(self, revision: str, *, is_away: bool = False) -> None:
        self.revision, self.is_away = revision, is_away
        self._moved.set()

    async def fetch(self, reference: str) -> ordering_pb2.Ordering:
        if self.is_away:
            raise OrderingServiceUnavailable("the ordering service is away")
        return ordering_pb2.Ordering(name=f"orderings/{reference.partition('@')[0]}", revision_id=self.revision)

    async def changes(self, names: Sequence[str]) -> AsyncGenerator[None, None]:
        while True:
            if self.is_away:
                raise OrderingServiceUnavailable("the ordering service is away")
            yield
            await self._moved.wait()
            self._moved.clear()


class ShelfApplier:
    """Activates what it applies, on the shelf."""

    def __init__(self, shelf: FakeShelf) -> None:
        self.shelf = shelf
        self.calls: list[tuple[str, bool]] = []
        self.refusal: InferenceError | None = None

    def apply(self, fetched: FetchedOrdering, adapter_model_id: str | None, activate: bool) -> AppliedOrdering:
        self.calls.append((fetched.revision_name, activate))
        if self.refusal is not None:
            raise self.refusal
        if activate:
            self.shelf.current = ActiveSet(BaseSelection(), self.shelf.current.generation + 1)
        return AppliedOrdering(fetched.revision_name, (), self.shelf.current)


@pytest.fixture
async def source() -> MovingSource:
    return MovingSource()


@pytest.fixture
def applier(shelf: FakeShelf) -> ShelfApplier:
    return ShelfApplier(shelf)


@pytest.fixture
async def follower(
    source: MovingSource, applier: ShelfApplier, shelf: FakeShelf, tmp_path: Path
) -> AsyncIterator[OrderingFollower]:
    threads = LoadingThreads()
    desk = OrderingDesk(source, OrderingCopies(tmp_path), applier, shelf, threads)
    await desk.apply_at_start("demo@live")
    follower = OrderingFollower(source, desk, backoff_seconds=(0.01,))
    follower.start(["demo@live"])
    yield follower
    await follower.close()
    threads.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


async def test_a_moved_tag_is_applied_once_and_shown(
    follower: OrderingFollower, source: MovingSource, applier: ShelfApplier
) -> None:
    await until(lambda: follower.states()[0].last_seen == "orderings/demo@1")
    source.move("2")
    await until(lambda: follower.states()[0].applied == "orderings/demo@2")
    (state,) = follower.states()
    assert (state.reference, state.last_seen, state.problem) == ("orderings/demo@live", "orderings/demo@2", "")
    assert state.last_heard_time is not None
    assert applier.calls == [("orderings/demo@1", True), ("orderings/demo@2", True)]


async def test_a_default_that_somebody_has_set_since_stays(
    follower: OrderingFollower, source: MovingSource, applier: ShelfApplier, shelf: FakeShelf
) -> None:
    await until(lambda: follower.states()[0].last_seen == "orderings/demo@1")
    shelf.current = ActiveSet(BaseSelection(), 77)
    source.move("2")
    await until(lambda: follower.states()[0].applied == "orderings/demo@2")
    assert applier.calls[-1] == ("orderings/demo@2", False)
    assert shelf.current.generation == 77


async def test_a_revision_that_does_not_fit_is_told_and_tried_again(
    follower: OrderingFollower, source: MovingSource, applier: ShelfApplier
) -> None:
    applier.refusal = OrderingUnfit("it is for another base model")
    source.move("2")
    await until(lambda: applier.calls.count(("orderings/demo@2", True)) >= 2)
    (state,) = follower.states()
    assert (state.applied, state.last_seen) == ("orderings/demo@1", "orderings/demo@2")
    assert state.problem == "it is for another base model"
    applier.refusal = None
    await until(lambda: follower.states()[0].applied == "orderings/demo@2")
    await until(lambda: follower.states()[0].problem == "")


async def test_a_service_that_goes_away_is_followed_again_when_it_is_back(
    follower: OrderingFollower, source: MovingSource
) -> None:
    await until(lambda: follower.states()[0].last_seen == "orderings/demo@1")
    source.move("1", is_away=True)
    await until(lambda: follower.states()[0].problem == "the ordering service is away")
    assert follower.states()[0].applied == "orderings/demo@1"
    source.move("3")
    await until(lambda: follower.states()[0].applied == "orderings/demo@3")
    await until(lambda: follower.states()[0].problem == "")


@pytest.mark.parametrize(
    ("orderings", "said"), [((), "nothing to follow"), (("demo@3",), "never changes"), (("demo@0123abcd",), "never")]
)
def test_what_cannot_change_is_not_followed(orderings: tuple[str, ...], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_config({"follow": True, "orderings": orderings}, {})
    assert load_config({"follow": True, "orderings": ("demo", "demo@live-2")}, {}).follow
