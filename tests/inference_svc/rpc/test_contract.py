"""What every method owes its callers: validation, codes, and no answer of UNKNOWN or INTERNAL to any input."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from structlog.testing import capture_logs

from inference_svc.errors import AdapterNotFound, PromptTooLong, QueueFull
from loramux.inference.v1 import (
    adapter_pb2,
    adapter_service_pb2,
    generation_pb2,
    inference_service_pb2,
)
from tests.inference_svc.rpc.fakes import FakeEngine, FakeShelf

if TYPE_CHECKING:  # the names exist for type checkers only
    from loramux.inference.v1.adapter_service_pb2_grpc import AdapterServiceAsyncStub
    from loramux.inference.v1.inference_service_pb2_grpc import InferenceServiceAsyncStub

pb = generation_pb2
SERVICES = (
    inference_service_pb2.DESCRIPTOR.services_by_name["InferenceService"],
    adapter_service_pb2.DESCRIPTOR.services_by_name["AdapterService"],
)
METHODS = [(f"/{service.full_name}/{method.name}", method) for service in SERVICES for method in service.methods]
PROMPT = pb.Prompt(text="hello")


def loras(*names: str) -> adapter_pb2.AdapterSelection:
    adapters = [adapter_pb2.WeightedAdapter(name=name) for name in names]
    return adapter_pb2.AdapterSelection(loras=adapter_pb2.WeightedAdapters(adapters=adapters))


async def failure_of(stub_method: Any, request: object) -> grpc.aio.AioRpcError:
    call = stub_method(request)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await (call.read() if isinstance(call, grpc.aio.UnaryStreamCall) else call)
    return caught.value


def violations_of(error: grpc.aio.AioRpcError) -> dict[str, str]:
    """Field path -> description."""
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT, error
    status = rpc_status.from_call(error)  # type: ignore[arg-type]  # works with the aio error too
    assert status is not None
    bad_request = error_details_pb2.BadRequest()
    info = error_details_pb2.ErrorInfo()
    assert any(detail.Unpack(info) for detail in status.details)
    assert info.reason
    assert any(detail.Unpack(bad_request) for detail in status.details)
    return {violation.field: violation.description for violation in bad_request.field_violations}


def xlora(**options: Any) -> generation_pb2.GenerateRequest:
    return pb.GenerateRequest(prompt=PROMPT, xlora=pb.XLoraOptions(**options))


@pytest.mark.parametrize(
    ("changes", "field", "got"),
    [
        ({"adapter_id": "bad name"}, "adapter_id", "(got 'bad name')"),
        ({"adapter_id": "x" * 10_000}, "adapter_id", "xxxx...xxxx"),
        ({"source": ""}, "source", "at least 1 characters (got '')"),
        ({"expected_digest": "abc"}, "expected_digest", "(got 'abc')"),
    ],
)
async def test_a_broken_rule_is_told_with_the_value_that_breaks_it(
    adapters: AdapterServiceAsyncStub, changes: dict[str, str], field: str, got: str
) -> None:
    request = adapter_service_pb2.LoadAdapterRequest(**({"adapter_id": "a", "source": "s"} | changes))  # type: ignore[arg-type]
    said = violations_of(await failure_of(adapters.LoadAdapter, request))[field]
    assert got in said
    assert len(said) < 250


REFUSED = [
    (pb.GenerateRequest(), "prompt"),
    (pb.GenerateRequest(prompt=pb.Prompt()), "prompt.prompt"),
    (pb.GenerateRequest(prompt=pb.Prompt(text="")), "prompt"),
    (pb.GenerateRequest(prompt=pb.Prompt(token_ids=pb.TokenIds())), "prompt"),
    (pb.GenerateRequest(prompt=pb.Prompt(token_ids=pb.TokenIds(ids=[1, 300]))), "prompt.token_ids.ids[1]"),
    (pb.GenerateRequest(prompt=pb.Prompt(chat=pb.ChatMessages())), "prompt.chat.messages"),
    (
        pb.GenerateRequest(prompt=pb.Prompt(chat=pb.ChatMessages(messages=[pb.ChatMessage(role="tool")]))),
        "prompt.chat",
    ),
    (pb.GenerateRequest(prompt=PROMPT, sampling=pb.Sampling(temperature=-1)), "sampling.temperature"),
    (pb.GenerateRequest(prompt=PROMPT, sampling=pb.Sampling(temperature=float("nan"))), "sampling.temperature"),
    (pb.GenerateRequest(prompt=PROMPT, sampling=pb.Sampling(top_p=0)), "sampling.top_p"),
    (pb.GenerateRequest(prompt=PROMPT, sampling=pb.Sampling(top_k=0)), "sampling.top_k"),
    (pb.GenerateRequest(prompt=PROMPT, sampling=pb.Sampling(min_p=1.5)), "sampling.min_p"),
    (pb.GenerateRequest(prompt=PROMPT, sampling=pb.Sampling(repetition_penalty=0)), "sampling.repetition_penalty"),
    (pb.GenerateRequest(prompt=PROMPT, sampling=pb.Sampling(temperature=0, top_p=0.5)), "sampling.top_p"),
    (pb.GenerateRequest(prompt=PROMPT, stopping=pb.Stopping(max_tokens=0)), "stopping.max_tokens"),
    (pb.GenerateRequest(prompt=PROMPT, stopping=pb.Stopping(max_tokens=1, min_tokens=2)), "stopping.min_tokens"),
    (pb.GenerateRequest(prompt=PROMPT, stopping=pb.Stopping(stop=["a", ""])), "stopping.stop[1]"),
    (pb.GenerateRequest(prompt=PROMPT, response=pb.ResponseOptions(logprobs=101)), "response.logprobs"),
    (pb.GenerateRequest(prompt=PROMPT, response=pb.ResponseOptions(scalings=9)), "response.scalings"),  # type: ignore[arg-type]
    (pb.GenerateRequest(prompt=PROMPT, response=pb.ResponseOptions(scalings_type=7)), "response.scalings_type"),  # type: ignore[arg-type]
    (
        pb.GenerateRequest(prompt=PROMPT, response=pb.ResponseOptions(scalings_type=pb.SCALINGS_TYPE_FLOAT16)),
        "response.scalings_type",
    ),
    (xlora(top_k_lora=0), "xlora.top_k_lora"),
    (xlora(softmax_temperature=0), "xlora.softmax_temperature"),
    (xlora(softmax_temperature=float("nan")), "xlora.softmax_temperature"),
    (xlora(global_scaling_weight=float("inf")), "xlora.global_scaling_weight"),
    (xlora(granularity=pb.ScalingsGranularity()), "xlora.granularity.granularity"),
    (xlora(granularity=pb.ScalingsGranularity(recomputed_every=0)), "xlora.granularity.recomputed_every"),
    (
        xlora(granularity=pb.ScalingsGranularity(settled=pb.FrozenWhenSettled(epsilon=-1, passes=1))),
        "xlora.granularity.settled.epsilon",
    ),
    (
        xlora(granularity=pb.ScalingsGranularity(settled=pb.FrozenWhenSettled(epsilon=0.1))),
        "xlora.granularity.settled.passes",
    ),
    (pb.GenerateRequest(prompt=PROMPT, adapters=loras()), "adapters.loras.adapters"),
    (pb.GenerateRequest(prompt=PROMPT, adapters=loras("pirate", "adapters/pirate")), "adapters.loras.adapters[1].name"),
    (pb.GenerateRequest(prompt=PROMPT, adapters=loras("a/b")), "adapters.loras.adapters[0].name"),
    (pb.GenerateRequest(prompt=PROMPT, adapters=loras("adapters/")), "adapters.loras.adapters[0].name"),
    (pb.GenerateRequest(request_id="x" * 129, prompt=PROMPT), "request_id"),
]


@pytest.mark.parametrize(
    ("request_", "field"), REFUSED, ids=[f"{index}-{field}" for index, (_, field) in enumerate(REFUSED)]
)
async def test_a_bad_value_is_refused_with_its_field_before_the_engine_sees_it(
    request_: generation_pb2.GenerateRequest, field: str, engine: FakeEngine, inference: InferenceServiceAsyncStub
) -> None:
    violations = violations_of(await failure_of(inference.Generate, request_))
    assert list(violations) == [field]
    assert violations[field]
    assert engine.streams == []


async def test_all_broken_rules_are_told_at_once(inference: InferenceServiceAsyncStub) -> None:
    request = pb.GenerateRequest(prompt=PROMPT, sampling=pb.Sampling(top_p=2, min_p=-1), request_id="")
    violations = violations_of(await failure_of(inference.Generate, request))
    assert set(violations) == {"sampling.top_p", "sampling.min_p", "request_id"}


async def test_an_unknown_token_id_names_itself_and_the_limit(inference: InferenceServiceAsyncStub) -> None:
    request = inference_service_pb2.DetokenizeRequest(ids=[5, 4294967295])
    violations = violations_of(await failure_of(inference.Detokenize, request))
    assert "4294967295" in violations["ids[1]"]
    assert "299" in violations["ids[1]"]


@pytest.mark.parametrize(
    ("refusal", "code"),
    [
        (PromptTooLong("prompt", "too long"), grpc.StatusCode.INVALID_ARGUMENT),
        (AdapterNotFound("no adapter 'x'"), grpc.StatusCode.NOT_FOUND),
        (QueueFull("256 requests wait"), grpc.StatusCode.RESOURCE_EXHAUSTED),
    ],
)
async def test_what_the_engine_refuses_has_its_status(
    refusal: Exception, code: grpc.StatusCode, engine: FakeEngine, inference: InferenceServiceAsyncStub
) -> None:
    engine.refusal = refusal
    assert (await failure_of(inference.Generate, pb.GenerateRequest(prompt=PROMPT))).code() is code


async def test_a_fault_of_ours_tells_an_id_and_the_log_has_the_story(
    engine: FakeEngine, shelf: FakeShelf, inference: InferenceServiceAsyncStub, adapters: AdapterServiceAsyncStub
) -> None:
    engine.refusal = shelf.refusal = ZeroDivisionError("secret text")
    with capture_logs() as logs:
        errors = [
            await failure_of(inference.Generate, pb.GenerateRequest(prompt=PROMPT)),
            await failure_of(adapters.GetAdapter, adapter_service_pb2.GetAdapterRequest(name="adapters/pirate")),
        ]
    entries = [entry for entry in logs if entry["event"] == "internal error"]
    for error, entry in zip(errors, entries, strict=True):
        assert error.code() is grpc.StatusCode.INTERNAL
        assert error.details() == f"internal error {entry['fault_id']}"
        assert entry["exc_info"] is engine.refusal


async def test_the_log_names_each_request_and_says_how_it_ended(
    engine: FakeEngine, inference: InferenceServiceAsyncStub
) -> None:
    with capture_logs() as logs:
        [event async for event in inference.Generate(pb.GenerateRequest(request_id="r-7", prompt=PROMPT))]
    (entry,) = [entry for entry in logs if entry["event"] == "request ended"]
    assert (entry["request_id"], entry["outcome"], entry["completion_tokens"]) == ("r-7", "eos", 2)
    assert entry["duration_seconds"] >= 0


async def raw_call(channel: grpc.aio.Channel, path: str, method: Any, raw: bytes) -> grpc.StatusCode:
    """The status that a method gives to these bytes."""
    try:
        if method.server_streaming:
            stream: Any = channel.unary_stream(path)
            async for _ in stream(raw):
                if method.name.startswith("Watch"):  # it ends when the client has enough
                    break
        else:
            unary: Any = channel.unary_unary(path)
            await unary(raw)
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


@pytest.mark.parametrize(("path", "method"), METHODS, ids=[path for path, _ in METHODS])
async def test_random_bytes_are_never_an_unknown_or_internal_error(
    path: str, method: Any, channel: grpc.aio.Channel
) -> None:
    dice = random.Random(path)
    seen = set()
    for _ in range(150):
        seen.add(await raw_call(channel, path, method, dice.randbytes(dice.randrange(1, 40))))
    seen.add(await raw_call(channel, path, method, b"\x0a\x02\xff\xfe"))
    assert not seen & {grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL}
    assert grpc.StatusCode.INVALID_ARGUMENT in seen


@pytest.mark.parametrize(("path", "method"), METHODS, ids=[path for path, _ in METHODS])
async def test_damaged_messages_are_never_an_unknown_or_internal_error(
    path: str, method: Any, channel: grpc.aio.Channel
) -> None:
    whole = pb.GenerateRequest(
        request_id="r", prompt=PROMPT, adapters=loras("pirate"), sampling=pb.Sampling(temperature=1, seed=3)
    ).SerializeToString()
    dice = random.Random(path)
    seen = set()
    for _ in range(150):
        damaged = bytearray(whole)
        for _ in range(dice.randrange(1, 4)):
            damaged[dice.randrange(len(damaged))] = dice.randrange(256)
        seen.add(await raw_call(channel, path, method, bytes(damaged)))
    assert not seen & {grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL}


async def test_a_method_that_does_not_exist_is_unimplemented(channel: grpc.aio.Channel) -> None:
    sing: Any = channel.unary_unary("/loramux.inference.v1.InferenceService/Sing")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await sing(b"")
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
