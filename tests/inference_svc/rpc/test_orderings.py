"""Fetching orderings from a real server, the copies on disk, and starts without the ordering service."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from structlog.testing import capture_logs

from inference_svc.adapters.loading_threads import LoadingThreads
from inference_svc.adapters.ordering import AppliedOrdering, FetchedOrdering
from inference_svc.adapters.resident import ActiveSet
from inference_svc.adapters.selection import AdapterKind, BaseSelection, LoraSelection, XLoraSelection
from inference_svc.config import StartError
from inference_svc.errors import (
    InferenceError,
    InvalidRequest,
    OrderingNotFound,
    OrderingServiceUnavailable,
    OrderingUnfit,
)
from inference_svc.rpc import ordering_client
from inference_svc.rpc.ordering_client import OrderingClient
from inference_svc.rpc.ordering_copies import OrderingCopies, UnreadableCopyError
from inference_svc.rpc.ordering_desk import OrderingDesk, described, fetched_ordering
from loramux.ordering.v1 import ordering_pb2, ordering_service_pb2
from tests.inference_svc.rpc.fakes import FakeShelf

DEMO = ordering_pb2.Ordering(
    name="orderings/demo",
    kind=ordering_pb2.ADAPTER_KIND_XLORA,
    document=ordering_pb2.OrderingDocument(
        order=ordering_pb2.AdapterNames(names=["b", "a"]),
        layers=ordering_pb2.LayerRows(
            rows=[ordering_pb2.LayerRow(path="model.z", row=0), ordering_pb2.LayerRow(path="model.a", row=1)]
        ),
        base_model_id="org/fake",
        preload_adapters=ordering_pb2.PreloadAdapters(
            adapters=[ordering_pb2.PreloadAdapter(name="extra", adapter_model_id="demo/extra")]
        ),
    ),
    adapter_model_id="demo/xlora",
    revision_id="0123456789abcdef",
    revision_number=3,
)


class OrderingServer:
    """Has one ordering; answers with `codes` first."""

    def __init__(self) -> None:
        self.codes: list[grpc.StatusCode] = []
        self.names: list[str] = []

    async def get_ordering(
        self, request: ordering_service_pb2.GetOrderingRequest, context: Any
    ) -> ordering_pb2.Ordering:
        self.names.append(request.name)
        if self.codes:
            await context.abort(self.codes.pop(0), "not now")
        if request.name.partition("@")[0] != DEMO.name:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such ordering")
        return DEMO


@pytest.fixture
def ordering_server() -> OrderingServer:
    return OrderingServer()


@pytest.fixture
async def client(ordering_server: OrderingServer, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[OrderingClient]:
    monkeypatch.setattr(ordering_client, "RETRY_DELAYS_SECONDS", (0.001, 0.001))
    server = grpc.aio.server()
    handler = grpc.unary_unary_rpc_method_handler(
        ordering_server.get_ordering,
        request_deserializer=ordering_service_pb2.GetOrderingRequest.FromString,
        response_serializer=ordering_pb2.Ordering.SerializeToString,
    )
    service = ordering_service_pb2.DESCRIPTOR.services_by_name["OrderingService"].full_name
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(service, {"GetOrdering": handler})])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    client = OrderingClient(f"127.0.0.1:{port}")
    yield client
    await client.close()
    await server.stop(0)


class RecordingApplier:
    """Remembers what it was asked to apply."""

    def __init__(self) -> None:
        self.calls: list[tuple[FetchedOrdering, str | None, bool]] = []
        self.refusal: InferenceError | None = None

    def apply(self, fetched: FetchedOrdering, adapter_model_id: str | None, activate: bool) -> AppliedOrdering:
        if self.refusal is not None:
            raise self.refusal
        self.calls.append((fetched, adapter_model_id, activate))
        return AppliedOrdering(fetched.revision_name, (), ActiveSet(BaseSelection(), 1))


class SwitchableSource:
    """An ordering service that can go away."""

    def __init__(self) -> None:
        self.is_away = False

    async def fetch(self, reference: str) -> ordering_pb2.Ordering:
        if self.is_away:
            raise OrderingServiceUnavailable("the ordering service at there:1 did not answer", address="there:1")
        return DEMO


@pytest.fixture
def source() -> SwitchableSource:
    return SwitchableSource()


@pytest.fixture
def applier() -> RecordingApplier:
    return RecordingApplier()


@pytest.fixture
def copies(tmp_path: Path) -> OrderingCopies:
    return OrderingCopies(tmp_path / "orderings")


@pytest.fixture
def threads() -> Iterator[LoadingThreads]:
    threads = LoadingThreads()
    yield threads
    threads.close()


@pytest.fixture
def desk(
    source: SwitchableSource,
    copies: OrderingCopies,
    applier: RecordingApplier,
    shelf: FakeShelf,
    threads: LoadingThreads,
) -> OrderingDesk:
    return OrderingDesk(source, copies, applier, shelf, threads)


def test_an_ordering_keeps_every_field_and_the_order_of_its_names() -> None:
    fetched = fetched_ordering(DEMO)
    assert (fetched.name, fetched.revision_id, fetched.kind) == (
        "orderings/demo",
        "0123456789abcdef",
        AdapterKind.XLORA,
    )
    assert fetched.order == ("b", "a")
    assert fetched.layers is not None
    assert list(fetched.layers.items()) == [("model.z", 0), ("model.a", 1)]
    assert (fetched.base_model_id, fetched.adapter_model_id) == ("org/fake", "demo/xlora")
    assert fetched.preload == (("extra", "demo/extra"),)


def test_what_the_file_lacks_stays_absent_and_what_is_empty_stays_empty() -> None:
    bare = fetched_ordering(ordering_pb2.Ordering(name="orderings/x"))
    assert (bare.kind, bare.order, bare.layers, bare.preload) == (None, None, None, ())
    empty = ordering_pb2.OrderingDocument(order=ordering_pb2.AdapterNames(), layers=ordering_pb2.LayerRows())
    fetched = fetched_ordering(ordering_pb2.Ordering(document=empty))
    assert (fetched.order, fetched.layers) == ((), {})


async def test_an_ordering_is_fetched_by_name_and_revision(
    client: OrderingClient, ordering_server: OrderingServer
) -> None:
    assert await client.fetch("demo@3") == DEMO
    assert ordering_server.names == ["orderings/demo@3"]


async def test_a_service_that_is_away_for_a_moment_is_asked_again(
    client: OrderingClient, ordering_server: OrderingServer
) -> None:
    ordering_server.codes = [grpc.StatusCode.UNAVAILABLE] * 2
    assert await client.fetch("demo") == DEMO
    assert len(ordering_server.names) == 3


async def test_a_service_that_stays_away_is_unavailable(
    client: OrderingClient, ordering_server: OrderingServer
) -> None:
    ordering_server.codes = [grpc.StatusCode.UNAVAILABLE] * 9
    with pytest.raises(OrderingServiceUnavailable, match="UNAVAILABLE"):
        await client.fetch("demo")
    assert len(ordering_server.names) == 3


async def test_nobody_at_the_address_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ordering_client, "RETRY_DELAYS_SECONDS", ())
    client = OrderingClient("127.0.0.1:1")
    with pytest.raises(OrderingServiceUnavailable, match=r"127\.0\.0\.1:1"):
        await client.fetch("demo")
    await client.close()


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (grpc.StatusCode.NOT_FOUND, OrderingNotFound),
        (grpc.StatusCode.INVALID_ARGUMENT, InvalidRequest),
        (grpc.StatusCode.INTERNAL, OrderingServiceUnavailable),
    ],
)
async def test_other_answers_are_told_at_once(
    code: grpc.StatusCode, kind: type[InferenceError], client: OrderingClient, ordering_server: OrderingServer
) -> None:
    ordering_server.codes = [code]
    with pytest.raises(kind, match="orderings/demo"):
        await client.fetch("demo")
    assert len(ordering_server.names) == 1


def test_a_copy_comes_back_as_it_was_and_knows_its_time(copies: OrderingCopies) -> None:
    assert copies.last("demo@3") is None
    copies.keep("demo@3", DEMO)
    copy = copies.last("demo@3")
    assert copy is not None
    assert copy.ordering == DEMO
    assert copy.fetched_at.tzinfo is not None
    assert copies.last("demo") is None


def test_a_new_copy_replaces_the_old_one_and_leaves_nothing_behind(copies: OrderingCopies, tmp_path: Path) -> None:
    copies.keep("demo", DEMO)
    later = ordering_pb2.Ordering(name="orderings/demo", revision_id="ffff")
    copies.keep("demo", later)
    copy = copies.last("demo")
    assert copy is not None
    assert copy.ordering == later
    assert [path.name for path in (tmp_path / "orderings").iterdir()] == ["demo.json"]


@pytest.mark.parametrize(
    "content", [b"", b"\xff", b"[]", b"{}", b'{"ordering": {"name": 3}, "fetched_at": ""}', b"[" * 100_000]
)
def test_a_broken_copy_is_told_apart_from_none(content: bytes, copies: OrderingCopies, tmp_path: Path) -> None:
    (tmp_path / "orderings").mkdir()
    (tmp_path / "orderings" / "demo.json").write_bytes(content)
    with pytest.raises(UnreadableCopyError, match=r"demo\.json"):
        copies.last("demo")


async def test_applying_fetches_loads_and_keeps_a_copy(
    desk: OrderingDesk, applier: RecordingApplier, copies: OrderingCopies
) -> None:
    applied = await desk.apply("demo", adapter_model_id="x/y", activate=False)
    assert applied.ordering == "orderings/demo@0123456789abcdef"
    assert applier.calls == [(fetched_ordering(DEMO), "x/y", False)]
    copy = copies.last("demo")
    assert copy is not None
    assert copy.ordering == DEMO


async def test_an_ordering_that_is_refused_leaves_the_copy_of_the_last_good_one(
    desk: OrderingDesk, applier: RecordingApplier, copies: OrderingCopies
) -> None:
    good = ordering_pb2.Ordering(name="orderings/demo", revision_id="ffff")
    copies.keep("demo", good)
    applier.refusal = OrderingUnfit("it is for another model")
    with pytest.raises(OrderingUnfit):
        await desk.apply("demo", adapter_model_id=None, activate=True)
    copy = copies.last("demo")
    assert copy is not None
    assert copy.ordering == good


@pytest.mark.parametrize("reference", ["..", "Demo", "demo@", "a b", "demo@../../x", "x" * 65, "demo\n"])
async def test_a_name_that_no_ordering_can_have_is_refused(reference: str, desk: OrderingDesk) -> None:
    with pytest.raises(InvalidRequest):
        await desk.apply(reference, adapter_model_id=None, activate=True)


async def test_while_the_service_is_away_a_caller_hears_what_stays_applied(
    desk: OrderingDesk, source: SwitchableSource, shelf: FakeShelf, applier: RecordingApplier
) -> None:
    await desk.apply("demo", adapter_model_id=None, activate=True)
    shelf.current = ActiveSet(LoraSelection({"pirate": 0.5}), 4)
    source.is_away = True
    with pytest.raises(OrderingServiceUnavailable, match=r"the active default stays as it is: 0\.5 × pirate"):
        await desk.apply("demo", adapter_model_id=None, activate=True)
    assert len(applier.calls) == 1


async def test_a_start_without_the_service_uses_the_copy_and_warns(
    desk: OrderingDesk, source: SwitchableSource, applier: RecordingApplier
) -> None:
    await desk.apply_at_start("demo")
    source.is_away = True
    with capture_logs() as logs:
        await desk.apply_at_start("demo")
    (warning,) = [entry["event"] for entry in logs if entry["log_level"] == "warning"]
    assert warning.startswith("ordering service away: using the copy of orderings/demo@0123456789abcdef fetched at 2")
    assert applier.calls == [(fetched_ordering(DEMO), None, True)] * 2


async def test_a_start_without_the_service_and_without_a_copy_says_what_to_do(
    desk: OrderingDesk, source: SwitchableSource
) -> None:
    source.is_away = True
    with pytest.raises(StartError, match="start the ordering service"):
        await desk.apply_at_start("demo")


async def test_a_start_without_the_service_and_with_a_broken_copy_names_the_file(
    desk: OrderingDesk, source: SwitchableSource, tmp_path: Path
) -> None:
    source.is_away = True
    (tmp_path / "orderings").mkdir()
    (tmp_path / "orderings" / "demo.json").write_text("{")
    with pytest.raises(StartError, match=r"demo\.json"):
        await desk.apply_at_start("demo")


async def test_a_copy_that_cannot_be_stored_is_a_warning_only(
    source: SwitchableSource, applier: RecordingApplier, shelf: FakeShelf, tmp_path: Path, threads: LoadingThreads
) -> None:
    (tmp_path / "file").write_text("")
    desk = OrderingDesk(source, OrderingCopies(tmp_path / "file" / "orderings"), applier, shelf, threads)
    with capture_logs() as logs:
        await desk.apply("demo", adapter_model_id=None, activate=True)
    assert [entry["log_level"] for entry in logs] == ["warning", "info"]


def test_defaults_are_described_in_words() -> None:
    assert described(BaseSelection()) == "the base model"
    assert described(XLoraSelection("mix")) == "X-LoRA mix"
    assert described(LoraSelection({"a": 1.0, "b": 0.25})) == "1 × a + 0.25 × b"
