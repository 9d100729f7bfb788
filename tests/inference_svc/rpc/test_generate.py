"""Generate over a real connection: events, requests as the engine sees them, cancellation, slow readers."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import grpc
import numpy as np
import pytest

from inference_svc.adapters.classifier import XLoraOverrides
from inference_svc.adapters.selection import (
    ActiveSelection,
    AdapterKind,
    AppliedAdapter,
    BaseSelection,
    LoraSelection,
    XLoraSelection,
)
from inference_svc.engine.request import (
    Failed,
    Finished,
    FinishReason,
    Output,
    ScalingsChunk,
    ScalingsDetail,
    Started,
    TokenLogprobs,
)
from inference_svc.errors import ReaderTooSlow
from inference_svc.scheduling.granularity import (
    EVERY_TOKEN,
    FrozenAfter,
    FrozenWhenSettled,
    Granularity,
    RecomputedEvery,
)
from loramux.inference.v1 import adapter_pb2, generation_pb2
from tests.inference_svc.rpc.fakes import FakeEngine, FakeStream

if TYPE_CHECKING:  # the name exists for type checkers only
    from loramux.inference.v1.inference_service_pb2_grpc import InferenceServiceAsyncStub

pb = generation_pb2


def prompt(text: str = "hello") -> generation_pb2.Prompt:
    return pb.Prompt(text=text)


async def events_of(
    inference: InferenceServiceAsyncStub, request: generation_pb2.GenerateRequest
) -> list[generation_pb2.GenerateResponse]:
    return [event async for event in inference.Generate(request)]


async def until(condition: object) -> None:
    """Wait for another thread to get somewhere; the test's own time limit ends a wait in vain."""
    assert callable(condition)
    while not condition():
        await asyncio.sleep(0.005)


async def test_every_event_arrives_as_the_engine_said_it(
    engine: FakeEngine, inference: InferenceServiceAsyncStub
) -> None:
    applied = (
        AppliedAdapter("pirate", AdapterKind.LORA, "cd" * 32, 0.0, (), "orderings/demo@12"),
        AppliedAdapter("mix", AdapterKind.XLORA, "ef" * 32, None, ("a", "b"), ""),
    )
    scalings = np.arange(12, dtype=np.float32).reshape(2, 3, 2)

    def answer(stream: FakeStream) -> None:
        stream.emit(Started("r-1", 5, applied, 7))
        stream.emit(
            Output(
                "Ah",
                (TokenLogprobs(65, -0.5, ((65, -0.5), (66, -1.25))), TokenLogprobs(104)),
                (TokenLogprobs(1, -2.0),),
                (ScalingsChunk(3, scalings),),
            )
        )
        stream.emit(Finished(FinishReason.STOP, "END", 5, 2, applied, cached_prompt_tokens=4))

    engine.on_submit = answer
    started, output, finished = await events_of(inference, pb.GenerateRequest(request_id="r-1", prompt=prompt()))

    assert started.started.request_id == "r-1"
    assert started.started.prompt_tokens == 5
    assert started.started.seed == 7
    lora, xlora = started.started.adapters
    assert (lora.name, lora.kind, lora.digest) == ("adapters/pirate", adapter_pb2.ADAPTER_KIND_LORA, "cd" * 32)
    assert lora.HasField("weight")
    assert lora.weight == 0.0
    assert lora.ordering == "orderings/demo@12"
    assert (xlora.kind, list(xlora.experts)) == (adapter_pb2.ADAPTER_KIND_XLORA, ["a", "b"])
    assert not xlora.HasField("weight")

    assert output.output.text == "Ah"
    first, second = output.output.tokens
    assert (first.id, first.logprob, [(top.id, top.logprob) for top in first.top]) == (
        65,
        -0.5,
        [(65, -0.5), (66, -1.25)],
    )
    assert second.id == 104
    assert not second.HasField("logprob")
    assert [(token.id, token.logprob) for token in output.output.prompt_tokens] == [(1, -2.0)]
    (chunk,) = output.output.scalings
    shape = (chunk.num_tokens, chunk.num_layers, chunk.num_adapters)
    assert (chunk.first_position, shape) == (3, (2, 3, 2))
    np.testing.assert_array_equal(np.frombuffer(chunk.values, "<f4").reshape(shape), scalings)

    assert finished.finished.reason == pb.FINISH_REASON_STOP
    assert finished.finished.stop == "END"
    usage = finished.finished.usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.cached_prompt_tokens) == (5, 2, 4)
    assert list(finished.finished.adapters) == list(started.started.adapters)


async def test_a_greedy_answer_names_no_seed_and_a_natural_end_no_stop_string(
    inference: InferenceServiceAsyncStub,
) -> None:
    started, _, finished = await events_of(inference, pb.GenerateRequest(prompt=prompt()))
    assert not started.started.HasField("seed")
    assert not finished.finished.HasField("stop")


@pytest.mark.parametrize("reason", list(FinishReason))
async def test_every_finish_reason_has_its_own_value(
    reason: FinishReason, engine: FakeEngine, inference: InferenceServiceAsyncStub
) -> None:
    engine.on_submit = lambda stream: stream.emit(Finished(reason, None, 1, 1, ()))
    (finished,) = await events_of(inference, pb.GenerateRequest(prompt=prompt()))
    assert pb.FinishReason.Name(finished.finished.reason) == f"FINISH_REASON_{reason.name}"


async def test_the_engine_gets_every_value_of_the_request(
    engine: FakeEngine, inference: InferenceServiceAsyncStub
) -> None:
    request = pb.GenerateRequest(
        prompt=pb.Prompt(token_ids=pb.TokenIds(ids=[1, 2, 299])),
        adapters=adapter_pb2.AdapterSelection(
            loras=adapter_pb2.WeightedAdapters(
                adapters=[
                    adapter_pb2.WeightedAdapter(name="adapters/pirate"),
                    adapter_pb2.WeightedAdapter(name="verse", weight=0),
                ]
            )
        ),
        sampling=pb.Sampling(
            temperature=0.5, top_p=0.25, top_k=3, min_p=0.125, repetition_penalty=2, presence_penalty=-1,
            frequency_penalty=0, seed=2**64 - 1,
        ),
        stopping=pb.Stopping(max_tokens=9, min_tokens=2, stop=["\n", "END"], ignore_eos=True),
        response=pb.ResponseOptions(
            logprobs=0, prompt_logprobs=4, scalings=pb.SCALINGS_DETAIL_FULL, scalings_type=pb.SCALINGS_TYPE_FLOAT16
        ),
        xlora=pb.XLoraOptions(
            granularity=pb.ScalingsGranularity(settled=pb.FrozenWhenSettled(epsilon=0.25, passes=3)),
            top_k_lora=2, global_scaling_weight=0,
        ),
    )  # fmt: skip
    await events_of(inference, request)
    (stream,) = engine.streams
    seen = stream.request
    assert seen.prompt_token_ids == (1, 2, 299)
    assert seen.selection == LoraSelection({"pirate": 1.0, "verse": 0.0})
    sampling = seen.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (0.5, 0.25, 3, 0.125)
    assert (sampling.repetition_penalty, sampling.presence_penalty, sampling.frequency_penalty) == (2, -1, 0)
    assert sampling.seed == 2**64 - 1
    stopping = seen.stopping
    assert (stopping.max_tokens, stopping.min_tokens, stopping.stop, stopping.ignore_eos) == (9, 2, ("\n", "END"), True)
    assert (seen.response.logprobs, seen.response.prompt_logprobs) == (0, 4)
    assert (seen.response.scalings, seen.response.half_precision) == (ScalingsDetail.FULL, True)
    assert seen.xlora.granularity == FrozenWhenSettled(0.25, 3)
    assert seen.xlora.overrides == XLoraOverrides(top_k_lora=2, global_scaling_weight=0.0)


@pytest.mark.parametrize(
    ("sent", "seen"),
    [
        (None, None),
        (pb.ScalingsGranularity(every_token=pb.EveryToken()), EVERY_TOKEN),
        (pb.ScalingsGranularity(frozen_after=0), FrozenAfter(0)),
        (pb.ScalingsGranularity(recomputed_every=4), RecomputedEvery(4)),
    ],
)
async def test_each_granularity_reaches_the_engine(
    sent: pb.ScalingsGranularity | None,
    seen: Granularity | None,
    engine: FakeEngine,
    inference: InferenceServiceAsyncStub,
) -> None:
    await events_of(inference, pb.GenerateRequest(prompt=prompt("ab"), xlora=pb.XLoraOptions(granularity=sent)))
    assert engine.streams[0].request.xlora.granularity == seen


async def test_values_that_are_not_set_keep_their_defaults_and_zero_is_a_value(
    engine: FakeEngine, inference: InferenceServiceAsyncStub
) -> None:
    await events_of(inference, pb.GenerateRequest(prompt=prompt("ab")))
    await events_of(inference, pb.GenerateRequest(prompt=prompt("ab"), sampling=pb.Sampling(temperature=0)))
    unset, zero = (stream.request for stream in engine.streams)
    assert unset.prompt_token_ids == (97, 98)
    assert unset.sampling.temperature == 1.0
    assert unset.sampling.seed is None
    assert (unset.stopping.max_tokens, unset.response.logprobs) == (None, None)
    assert unset.selection == ActiveSelection()
    assert zero.sampling.is_greedy


async def test_each_choice_of_adapters_reaches_the_engine(
    engine: FakeEngine, inference: InferenceServiceAsyncStub
) -> None:
    for selection in (
        adapter_pb2.AdapterSelection(base=adapter_pb2.BaseModel()),
        adapter_pb2.AdapterSelection(active=adapter_pb2.ActiveDefault()),
        adapter_pb2.AdapterSelection(xlora=adapter_pb2.XLoraSelection(name="adapters/mix")),
    ):
        await events_of(inference, pb.GenerateRequest(prompt=prompt(), adapters=selection))
    assert [stream.request.selection for stream in engine.streams] == [
        BaseSelection(),
        ActiveSelection(),
        XLoraSelection("mix"),
    ]


async def test_a_conversation_is_rendered_with_the_chat_template(
    engine: FakeEngine, inference: InferenceServiceAsyncStub
) -> None:
    chat = pb.ChatMessages(messages=[pb.ChatMessage(role="user", content="hi")])
    await events_of(inference, pb.GenerateRequest(prompt=pb.Prompt(chat=chat)))
    assert bytes(engine.streams[0].request.prompt_token_ids) == b"<user>hi"


async def test_an_answer_in_a_conversation_is_a_text_of_its_own_and_others_go_on_from_the_prompt(
    engine: FakeEngine, inference: InferenceServiceAsyncStub
) -> None:
    chat = pb.ChatMessages(messages=[pb.ChatMessage(role="user", content="hi")])
    await events_of(inference, pb.GenerateRequest(prompt=pb.Prompt(chat=chat)))
    await events_of(inference, pb.GenerateRequest(prompt=prompt()))
    assert [stream.request.begins_text for stream in engine.streams] == [True, False]


async def test_a_request_without_an_id_gets_one_of_its_own(
    engine: FakeEngine, inference: InferenceServiceAsyncStub
) -> None:
    answers = [await events_of(inference, pb.GenerateRequest(prompt=prompt())) for _ in range(2)]
    ids = [answer[0].started.request_id for answer in answers]
    assert len(set(ids)) == 2
    assert ids == [stream.request.request_id for stream in engine.streams]
    assert all(len(request_id) == 36 for request_id in ids)


async def test_outputs_that_wait_together_arrive_as_one_message(
    engine: FakeEngine, inference: InferenceServiceAsyncStub
) -> None:
    engine.on_submit = FakeStream.start
    call = inference.Generate(pb.GenerateRequest(prompt=prompt()))
    await call.read()
    (stream,) = engine.streams
    for letter in "abc":
        stream.say(letter)
    stream.finish(3)
    rest = []
    while isinstance(event := await call.read(), pb.GenerateResponse):  # in the end grpc.aio.EOF
        rest.append(event)
    assert [event.output.text for event in rest if event.HasField("output")] == ["abc"]
    assert [token.id for token in rest[0].output.tokens] == [97, 98, 99]


async def test_cancelling_a_call_that_waits_for_tokens_stops_its_request_once(
    engine: FakeEngine, inference: InferenceServiceAsyncStub
) -> None:
    engine.on_submit = FakeStream.start
    call = inference.Generate(pb.GenerateRequest(prompt=prompt()))
    await call.read()
    call.cancel()
    (stream,) = engine.streams
    await until(stream.cancelled.is_set)
    assert (await events_of_next_request(engine, inference))[-1].HasField("finished")
    assert stream.num_cancels == 1


async def events_of_next_request(
    engine: FakeEngine, inference: InferenceServiceAsyncStub
) -> list[generation_pb2.GenerateResponse]:
    def answer(stream: FakeStream) -> None:
        stream.start()
        stream.finish()

    engine.on_submit = answer
    return await events_of(inference, pb.GenerateRequest(prompt=prompt()))


async def test_a_deadline_stops_the_request(engine: FakeEngine, inference: InferenceServiceAsyncStub) -> None:
    engine.on_submit = FakeStream.start
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        [event async for event in inference.Generate(pb.GenerateRequest(prompt=prompt()), timeout=0.2)]
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await until(engine.streams[0].cancelled.is_set)


async def test_a_finished_request_is_not_cancelled(engine: FakeEngine, inference: InferenceServiceAsyncStub) -> None:
    await events_of(inference, pb.GenerateRequest(prompt=prompt()))
    await events_of(inference, pb.GenerateRequest(prompt=prompt()))
    assert engine.streams[0].num_cancels == 0


async def test_a_client_that_never_reads_is_cancelled_when_it_goes_away_and_costs_nobody_else(
    engine: FakeEngine, inference: InferenceServiceAsyncStub
) -> None:
    engine.on_submit = FakeStream.start
    call = inference.Generate(pb.GenerateRequest(prompt=prompt()))
    await call.read()
    (slow,) = engine.streams
    takes = -1
    while takes != slow.num_takes:  # until flow control holds the handler in its yield
        takes = slow.num_takes
        for _ in range(8):
            slow.emit(Output("x" * 2**20, ()))
            await asyncio.sleep(0.005)
    answer = await events_of_next_request(engine, inference)
    assert answer[-1].HasField("finished")
    assert slow.num_cancels == 0
    call.cancel()
    await until(slow.cancelled.is_set)
    await events_of_next_request(engine, inference)
    assert slow.num_cancels == 1


async def test_a_request_that_fails_in_the_middle_ends_with_the_status_of_its_error(
    engine: FakeEngine, inference: InferenceServiceAsyncStub
) -> None:
    def answer(stream: FakeStream) -> None:
        stream.start()
        stream.say("Ah")
        stream.emit(Failed(ReaderTooSlow("nothing was read for 30 seconds")))

    engine.on_submit = answer
    call = inference.Generate(pb.GenerateRequest(prompt=prompt()))
    kinds = []
    for _ in range(2):
        event = await call.read()
        assert isinstance(event, pb.GenerateResponse)
        kinds.append(event.WhichOneof("event"))
    assert kinds == ["started", "output"]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert engine.streams[0].num_cancels == 0
