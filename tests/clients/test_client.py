"""The blocking client against fake services."""

from __future__ import annotations

import gc
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loramux import client as package
from loramux.client import (
    BASE,
    AdapterKind,
    Client,
    EveryToken,
    FinishReason,
    FrozenAfter,
    FrozenWhenSettled,
    HubModel,
    InvalidArgument,
    LoRA,
    OrderingDocument,
    PreloadAdapter,
    RecomputedEvery,
    ScalingsRecord,
    XLoRA,
    XLoRAOptions,
    errors,
    parse_granularity,
)
from loramux.client.adapters import choice_to_proto
from loramux.client.generation import GenerateOptions, generate_request
from loramux.client.prompts import prompt_to_proto
from loramux.inference.v1 import adapter_pb2, generation_pb2
from tests.clients.fakes import EXPERTS, LAYERS, FakeServices, fake_scalings, token_id


def test_a_plain_string_is_raw_text_and_an_adapter_name_is_one_lora(client: Client, services: FakeServices) -> None:
    answer = client.generate("one two three", adapters="pirate", max_tokens=5, temperature=0.0, stop="end")
    assert answer.text == "three two one"
    assert answer.token_ids == (token_id("three"), token_id("two"), token_id("one"))
    assert answer.finish_reason is FinishReason.EOS
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (3, 3)
    assert [(adapter.name, adapter.kind, adapter.weight) for adapter in answer.adapters] == [
        ("pirate", AdapterKind.LORA, 1.0)
    ]
    assert (answer.seed, answer.request_id, answer.logprobs, answer.scalings) == (7, "made-1", None, None)
    request = services.inference.requests[0]
    assert request.prompt.text == "one two three"
    assert request.sampling.HasField("temperature")
    assert request.sampling.temperature == 0
    assert (request.stopping.max_tokens, list(request.stopping.stop)) == (5, ["end"])
    assert not request.sampling.HasField("top_p")


def test_every_option_reaches_the_request() -> None:
    options: GenerateOptions = {
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 40,
        "min_p": 0.1,
        "repetition_penalty": 1.1,
        "presence_penalty": 0.2,
        "frequency_penalty": 0.3,
        "seed": 0,
        "max_tokens": 9,
        "min_tokens": 2,
        "stop": ["a", "b"],
        "ignore_eos": True,
        "logprobs": 0,
        "prompt_logprobs": 3,
        "scalings": "mean",
        "scalings_type": "float16",
        "xlora": XLoRAOptions(FrozenAfter(0), top_k_lora=2, softmax_temperature=0.5, global_scaling_weight=0.0),
        "request_id": "mine",
        "timeout": 2.0,
    }
    assert set(options) == set(GenerateOptions.__annotations__)
    request = generate_request([1, 2], BASE, options)
    parts = (request.sampling, request.stopping, request.response)
    for name in set(options) - {"stop", "scalings", "scalings_type", "xlora", "request_id", "timeout"}:
        part = next(part for part in parts if name in part.DESCRIPTOR.fields_by_name)
        assert getattr(part, name) == options[name]  # type: ignore[literal-required]
        presence = part.DESCRIPTOR.fields_by_name[name].has_presence
        assert not presence or part.HasField(name)  # type: ignore[arg-type]
    assert list(request.stopping.stop) == ["a", "b"]
    assert request.response.scalings == generation_pb2.SCALINGS_DETAIL_MEAN
    assert request.response.scalings_type == generation_pb2.SCALINGS_TYPE_FLOAT16
    assert request.xlora == generation_pb2.XLoraOptions(
        granularity=generation_pb2.ScalingsGranularity(frozen_after=0),
        top_k_lora=2,
        softmax_temperature=0.5,
        global_scaling_weight=0.0,
    )
    assert request.request_id == "mine"


@pytest.mark.parametrize(
    ("choice", "form", "loras"),
    [
        (None, "active", []),
        (BASE, "base", []),
        (XLoRA("demo"), "xlora", []),
        ("pirate", "loras", [("pirate", 1.0)]),
        (LoRA("pirate", 0.5), "loras", [("pirate", 0.5)]),
        ({"pirate": 0.7, "json": 0.3}, "loras", [("pirate", 0.7), ("json", 0.3)]),
        (["pirate", LoRA("json", -1.0)], "loras", [("pirate", 1.0), ("json", -1.0)]),
    ],
)
def test_each_form_of_choosing_adapters_has_its_message(
    choice: package.AdapterChoice, form: str, loras: list[tuple[str, float]]
) -> None:
    message = choice_to_proto(choice)
    assert message.WhichOneof("selection") == form
    assert [(lora.name, lora.weight) for lora in message.loras.adapters] == loras


@pytest.mark.parametrize("choice", [{}, [], ["pirate", "adapters/pirate"]])
def test_an_empty_or_doubled_choice_is_refused_before_it_is_sent(choice: Any) -> None:
    with pytest.raises(errors.InvalidArgument) as caught:
        choice_to_proto(choice)
    assert caught.value.violations[0].field == "adapters"


@pytest.mark.parametrize("prompt", [[], [1, {"role": "user", "content": "x"}], [{"role": "user"}], [-1], [1.5]])
def test_a_prompt_without_one_clear_form_is_refused_before_it_is_sent(prompt: Any) -> None:
    with pytest.raises(errors.InvalidArgument, match="prompt"):
        prompt_to_proto(prompt)


@pytest.mark.parametrize(
    "options",
    [{"temprature": 1}, {"max_tokens": -1}, {"scalings": "all"}, {"top_k": "many"}, {"scalings_type": "int8"}],
)
def test_an_option_that_fits_no_message_is_refused_by_name(options: Any) -> None:
    with pytest.raises(errors.InvalidArgument) as caught:
        generate_request("hi", None, options)
    assert caught.value.violations[0].field == next(iter(options))


def test_messages_are_a_chat_and_ints_are_token_ids(client: Client, services: FakeServices) -> None:
    assert client.generate([{"role": "user", "content": "hello there"}]).text == "there hello"
    assert client.generate([5, 6]).text == "<6> <5>"
    chat, ids = services.inference.requests
    assert chat.prompt.chat.messages[0] == generation_pb2.ChatMessage(role="user", content="hello there")
    assert list(ids.prompt.token_ids.ids) == [5, 6]


def test_pieces_come_one_by_one_and_the_whole_answer_afterwards(client: Client) -> None:
    stream = client.stream("a b c", adapters={"pirate": 0.25})
    assert stream.started().adapters[0].weight == 0.25
    assert [piece.text for piece in stream] == ["c", " b", " a"]
    assert stream.generation().text == "c b a"
    assert list(stream) == []


def test_log_probabilities_come_when_asked_for(client: Client) -> None:
    answer = client.generate("a b", logprobs=1, prompt_logprobs=0)
    assert answer.logprobs == (-0.5, -0.5)
    assert (answer.tokens[0].top[0].id, answer.tokens[0].top[0].logprob) == (1, -0.25)
    assert answer.prompt_tokens[0].logprob == -1.0


def test_scalings_are_put_together_by_position_and_name_their_adapters(client: Client) -> None:
    answer = client.generate("a bb ccc", adapters=XLoRA("demo"), scalings="full")
    assert answer.scalings is not None
    np.testing.assert_array_equal(answer.scalings.values, fake_scalings(5, LAYERS))
    assert answer.scalings.experts == EXPERTS
    assert answer.adapters[0].ordering == "demo@3"


def test_recorded_scalings_survive_a_file_to_the_bit(client: Client, tmp_path: Path) -> None:
    answer = client.generate("a bb ccc", adapters=XLoRA("demo"), scalings="full")
    record = client.record_scalings("a bb ccc", answer)
    assert record.token_texts == (" t101", " t102", " t103", " t103", " t102")
    assert record.prompt_tokens == 3
    record.save(tmp_path / "s.npz")
    loaded = ScalingsRecord.load(tmp_path / "s.npz")
    np.testing.assert_array_equal(loaded.values, record.values)
    assert (loaded.experts, loaded.token_ids, loaded.token_texts, loaded.prompt_tokens) == (
        record.experts,
        record.token_ids,
        record.token_texts,
        record.prompt_tokens,
    )


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04broken"])
def test_a_file_that_holds_no_scalings_is_refused_by_name(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(errors.InvalidArgument, match=r"x\.npz"):
        ScalingsRecord.load(tmp_path / "x.npz")


def test_arrays_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    values = np.zeros((2, 1, 3), dtype=np.float32)
    ScalingsRecord(values, ("a", "b"), (1, 2), ("x", "y"), 1).save(tmp_path / "x.npz")
    with pytest.raises(errors.InvalidArgument, match="3 adapters, but 2 names"):
        ScalingsRecord.load(tmp_path / "x.npz")


def _started() -> generation_pb2.GenerateResponse:
    adapter = adapter_pb2.AppliedAdapter(
        name="adapters/demo", kind=adapter_pb2.ADAPTER_KIND_XLORA, experts=["one", "two"]
    )
    return generation_pb2.GenerateResponse(started=generation_pb2.Started(request_id="r", adapters=[adapter]))


def _output(*chunks: generation_pb2.Scalings) -> generation_pb2.GenerateResponse:
    return generation_pb2.GenerateResponse(output=generation_pb2.Output(text="x", scalings=chunks))


def _chunk(first: int, data: bytes = bytes(8)) -> generation_pb2.Scalings:
    return generation_pb2.Scalings(first_position=first, num_tokens=1, num_layers=1, num_adapters=2, values=data)


@pytest.mark.parametrize(
    ("script", "complaint"),
    [
        ([], "ended before"),
        ([_started()], "ended before"),
        ([_output()], "before 'started'"),
        ([_started(), _started()], "started the answer twice"),
        ([_started(), _output(_chunk(0), _chunk(2))], "left out the scalings of position 1"),
        ([_started(), _output(_chunk(0, b"123"))], "3 bytes of scalings"),
        ([_started(), generation_pb2.GenerateResponse(finished=generation_pb2.Finished())], "finish reason 0"),
    ],
)
def test_an_answer_that_breaks_the_contract_is_an_error_not_a_guess(
    client: Client, services: FakeServices, script: list[generation_pb2.GenerateResponse], complaint: str
) -> None:
    services.inference.script = script
    with pytest.raises(errors.Internal, match=complaint):
        client.generate("hi")


def test_leaving_a_loop_early_cancels_the_request(client: Client, services: FakeServices) -> None:
    for _ in client.stream("forever"):
        break
    gc.collect()
    assert services.inference.ended.wait(10)


def test_a_stream_that_is_never_read_is_cancelled_when_dropped(client: Client, services: FakeServices) -> None:
    stream = client.stream("forever")
    stream.started()
    del stream
    assert services.inference.ended.wait(10)


def test_closing_ends_the_iteration_and_the_request(client: Client, services: FakeServices) -> None:
    with client.stream("forever") as stream:
        next(stream)
    assert list(stream) == []
    assert services.inference.ended.wait(10)


def test_a_deadline_ends_an_answer_that_does_not_end(client: Client, services: FakeServices) -> None:
    with pytest.raises(errors.DeadlineExceeded):
        client.generate("forever", timeout=0.2)
    assert services.inference.ended.wait(10)


def test_a_unary_call_has_the_deadline_of_the_client(services: FakeServices) -> None:
    services.inference.delay_s = 1.0
    with (
        Client(services.address, timeout=0.1) as client,
        pytest.raises(errors.DeadlineExceeded, match="did not answer"),
    ):
        client.model()


def test_reads_are_retried_while_the_service_is_away_for_a_moment(client: Client, services: FakeServices) -> None:
    services.inference.unavailable = 2
    assert client.model().quantization == "Q4_1"


def test_an_unknown_adapter_is_a_typed_error_with_its_name(client: Client) -> None:
    with pytest.raises(errors.NotFound, match="nobody") as caught:
        client.generate("hi", adapters="nobody")
    assert (caught.value.code, caught.value.reason) == ("NOT_FOUND", "ADAPTER_NOT_FOUND")
    assert caught.value.metadata == {"adapter": "nobody"}


def test_all_violations_of_a_request_are_named(client: Client) -> None:
    with pytest.raises(errors.InvalidArgument) as caught:
        client.generate("hi", adapters="wrong")
    assert [violation.field for violation in caught.value.violations] == ["adapters[0].weight", "sampling.top_p"]


def test_a_service_that_is_not_there_is_named_by_its_address() -> None:
    with Client("127.0.0.1:1") as client, pytest.raises(errors.Unavailable, match=r"127\.0\.0\.1:1"):
        client.generate("hi")


def test_adapters_are_loaded_listed_over_pages_activated_and_unloaded(client: Client) -> None:
    for name in ("a", "b", "c", "d", "e"):
        assert client.adapters.load(name, f"/roots/{name}").name == name
    assert [adapter.name for adapter in client.adapters.list()] == ["a", "b", "c", "d", "e"]
    assert client.adapters.get("adapters/b").source == "/roots/b"
    assert client.adapters.active().selection == BASE
    assert client.adapters.activate({"a": 0.5, "b": 2.0}).selection == (LoRA("a", 0.5), LoRA("b", 2.0))
    assert client.adapters.active().generation == 1
    assert client.adapters.unload("a").name == "a"
    with pytest.raises(errors.NotFound):
        client.adapters.get("a")
    with pytest.raises(errors.AlreadyExists):
        client.adapters.load("b", "/roots/b")
    assert client.adapters.load("b", "/roots/new", replace=True).source == "/roots/new"
    with pytest.raises(errors.PermissionDenied):
        client.adapters.load("f", "/etc/passwd")
    with pytest.raises(errors.InvalidArgument):
        client.adapters.activate(None)


def test_applying_an_ordering_says_the_exact_revision(client: Client) -> None:
    applied = client.apply_ordering("demo", adapter_model_id="/roots/x")
    assert (applied.ordering, applied.active.selection) == ("demo@3", XLoRA("demo"))
    assert (applied.adapters[0].experts, applied.adapters[0].source) == (EXPERTS, "/roots/x")
    assert applied.warnings == ("its classifier may choose otherwise",)
    assert client.apply_ordering("demo", activate=False).active.generation == 1


def test_orderings_keep_every_field_through_create_and_get(client: Client) -> None:
    document = OrderingDocument(
        base_model_id="base",
        order=("b", "a"),
        layers={"model.layers.0.self_attn.q_proj": 1, "lm_head": 0},
        preload_adapters=(PreloadAdapter("x", "place"),),
    )
    created = client.orderings.create(
        "demo", document, kind=AdapterKind.XLORA, adapter_model_id="/roots", description="why", labels={"k": "v"}
    )
    read = client.orderings.get("demo")
    assert read == created
    assert (read.id, read.kind, read.document, read.labels) == ("demo", AdapterKind.XLORA, document, {"k": "v"})
    assert list(read.document.layers or {}) == ["model.layers.0.self_attn.q_proj", "lm_head"]
    assert (read.adapter_model_id, read.description, read.etag) == ("/roots", "why", "etag-1")


def test_a_key_that_a_document_lacks_stays_absent(client: Client) -> None:
    document = OrderingDocument(base_model_id="base", order=())
    assert client.orderings.create("demo", document).document == document


def test_a_stale_etag_is_aborted_with_the_current_one(client: Client) -> None:
    client.orderings.create("demo", OrderingDocument(base_model_id="base"))
    client.orderings.update("demo", description="new", labels={})
    with pytest.raises(errors.Aborted) as caught:
        client.orderings.update("demo", etag="etag-1", description="newer")
    assert caught.value.current_etag == "etag-2"
    with pytest.raises(errors.Aborted):
        client.orderings.delete("demo", etag="etag-1")
    assert [revision.revision_number for revision in client.orderings.revisions("demo")] == [2, 1]
    assert client.orderings.get("demo", 1).description == ""
    assert client.orderings.get("demo@2").description == "new"
    assert client.orderings.delete("demo", etag="etag-2").id == "demo"


def test_an_ordering_file_comes_back_byte_for_byte(client: Client, tmp_path: Path) -> None:
    content = b'{ "base_model_id":"b",\n "order":["x"]}\n'
    (tmp_path / "my-file.json").write_bytes(content)
    assert client.orderings.import_file(tmp_path / "my-file.json").id == "my-file"
    client.orderings.export_file("my-file").save(tmp_path / "out.json")
    assert (tmp_path / "out.json").read_bytes() == content
    with pytest.raises(errors.InvalidArgument, match="no file name"):
        client.orderings.import_file(content)
    assert client.orderings.import_file(content, "other").id == "other"
    assert [ordering.id for ordering in client.orderings.list()] == ["my-file", "other"]


def test_generating_and_validating_pass_model_and_kind_on(client: Client, services: FakeServices) -> None:
    made = client.orderings.generate(HubModel("org/model@main"), ["q_proj", "v_proj"], ["a"], base_model_id="m")
    assert made.document.layers == {"model.layers.0.self_attn.q_proj": 0, "model.layers.0.self_attn.v_proj": 1}
    assert services.ordering.seen[-1].model.hub_id == "org/model@main"
    assert client.orderings.validate(made.json, kind=AdapterKind.XLORA, quantized_architecture="llama").valid
    assert services.ordering.seen[-1].quantized_architecture == "llama"
    client.orderings.validate("demo", check_adapters=True, adapter_model_id="my-adapters")
    asked = services.ordering.seen[-1]
    assert (asked.check_adapters, asked.adapter_model_id) == (True, "my-adapters")
    broken = client.orderings.validate(b"{}")
    assert [(problem.code, problem.severity, problem.hint, problem.file) for problem in broken.problems] == [
        ("BASE_MODEL_ID_MISSING", "error", "Add base_model_id.", ""),
        ("ORDER_EMPTY", "warning", "Write the names.", "math/adapter_config.json"),
    ]
    assert client.orderings.validate("demo").valid
    assert services.ordering.seen[-1].name == "orderings/demo"


def test_a_client_without_ordering_address_says_how_to_give_one() -> None:
    with Client() as client, pytest.raises(errors.InvalidArgument, match="ordering='HOST:PORT'"):
        client.orderings.list()


def test_one_client_serves_many_threads_at_once(client: Client) -> None:
    answers: list[str] = []
    threads = [threading.Thread(target=lambda: answers.append(client.generate("x y").text)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == ["y x"] * 8


def test_a_granularity_is_written_as_a_word_and_sent_as_one_choice() -> None:
    words = {
        "every-token": (EveryToken(), {"every_token": {}}),
        "frozen-after:4": (FrozenAfter(4), {"frozen_after": 4}),
        "every:8": (RecomputedEvery(8), {"recomputed_every": 8}),
        "settled:0.01:3": (FrozenWhenSettled(0.01, 3), {"settled": {"epsilon": 0.01, "passes": 3}}),
    }
    for word, (granularity, fields) in words.items():
        assert parse_granularity(word) == granularity
        request = generate_request([1], BASE, {"xlora": XLoRAOptions(granularity)})
        assert request.xlora == generation_pb2.XLoraOptions(granularity=fields)  # type: ignore[arg-type]


@pytest.mark.parametrize("word", ["", "sometimes", "frozen-after", "frozen-after:x", "every:1:2", "settled:0.1"])
def test_what_is_no_granularity_is_refused_by_name(word: str) -> None:
    with pytest.raises(InvalidArgument, match="want every-token"):
        parse_granularity(word)


def test_a_granularity_that_no_message_holds_is_refused_by_name() -> None:
    with pytest.raises(InvalidArgument, match=r"xlora\.granularity.*FrozenAfter\(passes=-1\)"):
        generate_request([1], BASE, {"xlora": XLoRAOptions(FrozenAfter(-1))})
