"""Tokenizer, model and adapter methods over a real connection."""

from __future__ import annotations

from typing import TYPE_CHECKING

import grpc
import pytest

from inference_svc.adapters.selection import LoraSelection
from inference_svc.errors import OrderingServiceUnavailable
from loramux.inference.v1 import adapter_pb2, adapter_service_pb2, generation_pb2, inference_service_pb2
from tests.inference_svc.rpc.fakes import FakeDesk, FakeShelf, resident

if TYPE_CHECKING:  # the names exist for type checkers only
    from loramux.inference.v1.adapter_service_pb2_grpc import AdapterServiceAsyncStub
    from loramux.inference.v1.inference_service_pb2_grpc import InferenceServiceAsyncStub

pb = adapter_service_pb2


async def test_text_goes_to_ids_and_back(inference: InferenceServiceAsyncStub) -> None:
    prompt = generation_pb2.Prompt(text="Grüße")
    tokenized = await inference.Tokenize(inference_service_pb2.TokenizeRequest(prompt=prompt))
    assert list(tokenized.ids) == list("Grüße".encode())
    assert not tokenized.HasField("rendered")
    text = await inference.Detokenize(inference_service_pb2.DetokenizeRequest(ids=tokenized.ids))
    assert text.text == "Grüße"


async def test_a_conversation_comes_back_rendered(inference: InferenceServiceAsyncStub) -> None:
    chat = generation_pb2.ChatMessages(messages=[generation_pb2.ChatMessage(role="user", content="hi")])
    request = inference_service_pb2.TokenizeRequest(prompt=generation_pb2.Prompt(chat=chat))
    tokenized = await inference.Tokenize(request)
    assert tokenized.rendered == "<user>hi"
    assert bytes(tokenized.ids) == b"<user>hi"


async def test_an_empty_text_has_no_tokens(inference: InferenceServiceAsyncStub) -> None:
    request = inference_service_pb2.TokenizeRequest(prompt=generation_pb2.Prompt(text=""))
    assert list((await inference.Tokenize(request)).ids) == []


async def test_the_model_is_described_field_by_field(inference: InferenceServiceAsyncStub) -> None:
    model = await inference.GetModel(inference_service_pb2.GetModelRequest())
    assert model == inference_service_pb2.Model(
        base_model_id="org/fake",
        architecture="llama",
        quantization="Q4_1",
        context_length=128,
        vocab_size=300,
        num_layers=2,
        weight_bytes=12345,
        device="cpu",
        kernels="reference",
        batch_invariant=True,
        adapter_modules=["q_proj", "v_proj"],
        service_version="1.2.3",
        kv_cache=inference_service_pb2.KvCacheUsage(
            total_tokens=1024,
            free_tokens=512,
            shareable_tokens=256,
            running_requests=3,
            waiting_requests=2,
            prompt_tokens=1000,
            cached_prompt_tokens=400,
            evicted_tokens=48,
            preemptions=1,
        ),
    )
    assert len(model.ListFields()) == len(model.DESCRIPTOR.fields)


async def test_an_adapter_is_loaded_shown_and_unloaded(adapters: AdapterServiceAsyncStub) -> None:
    loaded = await adapters.LoadAdapter(pb.LoadAdapterRequest(adapter_id="haiku", source="demo/haiku"))
    assert (loaded.name, loaded.source) == ("adapters/haiku", "demo/haiku")
    assert loaded.load_time.ToJsonString() == "2026-01-02T03:04:05Z"
    assert await adapters.GetAdapter(pb.GetAdapterRequest(name="adapters/haiku")) == loaded
    assert await adapters.UnloadAdapter(pb.UnloadAdapterRequest(name="adapters/haiku")) == loaded
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await adapters.GetAdapter(pb.GetAdapterRequest(name="adapters/haiku"))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_pages_hold_every_adapter_once_even_if_some_leave_in_between(
    shelf: FakeShelf, adapters: AdapterServiceAsyncStub
) -> None:
    names = [f"a{number:02}" for number in range(7)]
    shelf.adapters = {name: resident(name) for name in reversed(names)}
    seen: list[str] = []
    token = ""
    while True:
        page = await adapters.ListAdapters(pb.ListAdaptersRequest(page_size=3, page_token=token))
        seen += [adapter.name.removeprefix("adapters/") for adapter in page.adapters]
        assert page.active.selection.HasField("base")
        token = page.next_page_token
        if not token:
            break
        shelf.adapters.pop("a00", None)  # seen already: must shift nothing
    assert seen == names


async def test_a_page_that_is_just_full_is_the_last(shelf: FakeShelf, adapters: AdapterServiceAsyncStub) -> None:
    page = await adapters.ListAdapters(pb.ListAdaptersRequest(page_size=2))
    assert len(page.adapters) == 2
    assert page.next_page_token == ""


@pytest.mark.parametrize("token", ["x", "????", "cGlyYXRl", "é", "T3RoZXI6YQ=="])
async def test_a_foreign_page_token_is_refused(token: str, adapters: AdapterServiceAsyncStub) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await adapters.ListAdapters(pb.ListAdaptersRequest(page_token=token))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_negative_page_size_is_refused(adapters: AdapterServiceAsyncStub) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await adapters.ListAdapters(pb.ListAdaptersRequest(page_size=-1))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_activation_replaces_the_default(shelf: FakeShelf, adapters: AdapterServiceAsyncStub) -> None:
    weighted = [
        adapter_pb2.WeightedAdapter(name="adapters/pirate", weight=0.5),
        adapter_pb2.WeightedAdapter(name="verse"),
    ]
    selection = adapter_pb2.AdapterSelection(loras=adapter_pb2.WeightedAdapters(adapters=weighted))
    active = await adapters.ActivateAdapters(pb.ActivateAdaptersRequest(selection=selection))
    assert shelf.current.selection == LoraSelection({"pirate": 0.5, "verse": 1.0})
    assert active.generation == 1
    shown = {adapter.name: adapter.weight for adapter in active.selection.loras.adapters}
    assert shown == {"adapters/pirate": 0.5, "adapters/verse": 1.0}


@pytest.mark.parametrize(
    "selection",
    [
        adapter_pb2.AdapterSelection(),
        adapter_pb2.AdapterSelection(active=adapter_pb2.ActiveDefault()),
    ],
    ids=["nothing", "active"],
)
async def test_the_default_cannot_become_itself(
    selection: adapter_pb2.AdapterSelection, shelf: FakeShelf, adapters: AdapterServiceAsyncStub
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await adapters.ActivateAdapters(pb.ActivateAdaptersRequest(selection=selection))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert shelf.current.generation == 0


async def test_an_ordering_is_applied_as_asked(desk: FakeDesk, adapters: AdapterServiceAsyncStub) -> None:
    applied = await adapters.ApplyOrdering(pb.ApplyOrderingRequest(ordering="orderings/demo@3"))
    await adapters.ApplyOrdering(
        pb.ApplyOrderingRequest(ordering="orderings/demo", adapter_model_id="x/y", skip_activation=True)
    )
    assert desk.calls == [("demo@3", None, True), ("demo", "x/y", False)]
    assert applied.ordering == "orderings/demo@3@0123456789abcdef"
    assert [adapter.name for adapter in applied.adapters] == ["adapters/pirate"]
    assert applied.warnings == ["take care"]


async def test_an_ordering_service_that_is_away_is_unavailable(
    desk: FakeDesk, adapters: AdapterServiceAsyncStub
) -> None:
    desk.refusal = OrderingServiceUnavailable("away; the active default stays: the base model")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await adapters.ApplyOrdering(pb.ApplyOrderingRequest(ordering="orderings/demo"))
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert caught.value.details() == "away; the active default stays: the base model"
