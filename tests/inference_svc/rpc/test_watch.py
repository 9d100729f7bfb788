"""WatchAdapters, pins and expected digests over a real connection."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import grpc
import pytest

from inference_svc.adapters.residency import WATCHER_QUEUE, ResidencyEventKind, ResidencyLog
from inference_svc.adapters.resident import ActiveSet
from inference_svc.adapters.selection import BaseSelection
from inference_svc.rpc.adapter_messages import EVENT_KINDS, followed_to_proto
from inference_svc.rpc.ports import FollowedOrdering
from loramux.inference.v1 import adapter_service_pb2 as pb
from tests.inference_svc.rpc.fakes import FakeShelf, resident

if TYPE_CHECKING:
    from loramux.inference.v1.adapter_service_pb2_grpc import AdapterServiceAsyncStub

DIGEST = "0f" * 32


async def test_a_watch_begins_with_a_snapshot_and_goes_on_with_events(
    adapters: AdapterServiceAsyncStub, shelf: FakeShelf
) -> None:
    call = adapters.WatchAdapters(pb.WatchAdaptersRequest())
    first = await call.read()
    assert isinstance(first, pb.WatchAdaptersResponse)
    assert [adapter.name for adapter in first.snapshot.adapters] == ["adapters/pirate", "adapters/verse"]
    shelf.log.record(ResidencyEventKind.EVICTED, resident("pirate"))
    shelf.log.record(ResidencyEventKind.ACTIVATED, active=ActiveSet(BaseSelection(), 3))
    second, third = await call.read(), await call.read()
    assert isinstance(second, pb.WatchAdaptersResponse)
    assert isinstance(third, pb.WatchAdaptersResponse)
    assert second.event.kind == pb.ADAPTER_EVENT_KIND_EVICTED
    assert (second.event.generation, second.event.adapter.name) == (1, "adapters/pirate")
    assert (third.event.generation, third.event.active.generation) == (2, 3)
    assert not third.event.HasField("adapter")
    call.cancel()
    while shelf.log.num_watches:
        await asyncio.sleep(0.01)


async def test_a_watch_resumes_after_its_token_and_starts_anew_with_one_of_another_start(
    adapters: AdapterServiceAsyncStub, shelf: FakeShelf
) -> None:
    first = await adapters.WatchAdapters(pb.WatchAdaptersRequest()).read()
    assert isinstance(first, pb.WatchAdaptersResponse)
    shelf.log.record(ResidencyEventKind.PINNED, resident("pirate"))
    resumed = await adapters.WatchAdapters(pb.WatchAdaptersRequest(resume_token=first.resume_token)).read()
    assert isinstance(resumed, pb.WatchAdaptersResponse)
    assert resumed.event.kind == pb.ADAPTER_EVENT_KIND_PINNED
    for token in ("ab" * 16 + ".0", first.resume_token.partition(".")[0] + ".99"):
        anew = await adapters.WatchAdapters(pb.WatchAdaptersRequest(resume_token=token)).read()
        assert isinstance(anew, pb.WatchAdaptersResponse)
        assert anew.WhichOneof("update") == "snapshot"
    with pytest.raises(grpc.aio.AioRpcError, match="is not a resume token") as caught:
        await adapters.WatchAdapters(pb.WatchAdaptersRequest(resume_token="yesterday")).read()
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_a_watcher_that_does_not_read_is_told_so_and_costs_a_bounded_queue() -> None:
    from inference_svc.errors import WatcherTooSlow

    shelf = FakeShelf("pirate")
    watch = shelf.watch(None, lambda: None)
    for _ in range(WATCHER_QUEUE + 5):
        shelf.log.record(ResidencyEventKind.LOADED, resident("pirate"))
    with pytest.raises(WatcherTooSlow, match="watch again with the last resume token"):
        watch.take()


def test_a_token_older_than_the_history_leads_to_a_snapshot() -> None:
    shelf = FakeShelf("pirate")
    token = shelf.watch(None, lambda: None).take()[0].resume_token
    for _ in range(2000):
        shelf.log.record(ResidencyEventKind.LOADED, resident("pirate"))
    (update,) = shelf.watch(token, lambda: None).take()
    assert update.resume_token.endswith(".2000")
    assert ResidencyLog().generation == 0


def test_every_kind_of_event_is_in_the_contract() -> None:
    assert len(set(EVENT_KINDS.values())) == len(ResidencyEventKind) == len(pb.AdapterEventKind.keys()) - 1


async def test_pins_and_expected_digests_reach_the_shelf(adapters: AdapterServiceAsyncStub, shelf: FakeShelf) -> None:
    assert (await adapters.PinAdapter(pb.PinAdapterRequest(name="adapters/pirate"))).pinned
    assert not (await adapters.UnpinAdapter(pb.UnpinAdapterRequest(name="adapters/pirate"))).pinned
    request = pb.LoadAdapterRequest(adapter_id="new", source="demo", replace=True, expected_digest=DIGEST, pinned=True)
    assert (await adapters.LoadAdapter(request)).pinned
    await adapters.UnloadAdapter(pb.UnloadAdapterRequest(name="adapters/new", expected_digest=DIGEST))
    await adapters.UnloadAdapter(pb.UnloadAdapterRequest(name="adapters/verse"))
    assert shelf.expected == [DIGEST, DIGEST, None]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await adapters.UnloadAdapter(pb.UnloadAdapterRequest(name="adapters/pirate", expected_digest="abc"))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_a_followed_ordering_that_was_never_heard_has_no_time() -> None:
    message = followed_to_proto(FollowedOrdering("orderings/a@live", "", "orderings/a@1", "away", None))
    assert (message.reference, message.last_seen, message.problem) == ("orderings/a@live", "orderings/a@1", "away")
    assert not message.HasField("last_heard_time")
