"""The engine on a tiny random model: every accepted request ends, and nothing is left over."""

from __future__ import annotations

import dataclasses
import itertools
import threading
import time
from collections.abc import Iterator

import pytest

from inference_svc.adapters.base_model import AdapterLimits
from inference_svc.adapters.registry import AdapterRegistry
from inference_svc.adapters.selection import BaseSelection, LoraSelection
from inference_svc.engine.engine import Engine, EngineConfig
from inference_svc.engine.request import (
    Failed,
    Finished,
    FinishReason,
    GenerationRequest,
    Output,
    Sampling,
    Started,
    Stopping,
)
from inference_svc.errors import (
    AdapterNotFound,
    Draining,
    EngineStopped,
    InvalidRequest,
    PromptTooLong,
    QueueFull,
    ReaderTooSlow,
    RequestTooLarge,
)
from inference_svc.models.base_model import BaseModel
from tests.inference_svc.engine.tiny_engine import Letters, Reader, tiny_base_model, when_idle


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    return tiny_base_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def registry(base: BaseModel) -> AdapterRegistry:
    return AdapterRegistry(base.shape, AdapterLimits())


@pytest.fixture
def engine(base: BaseModel, registry: AdapterRegistry) -> Iterator[Engine]:
    subject = Engine(base, registry, EngineConfig(max_waiting=3, kv_cache_tokens=256, context_length=64))
    subject.start()
    yield subject
    subject.stop()


def request(
    prompt: tuple[int, ...] = (1, 2, 3), *, max_tokens: int | None = 5, ignore_eos: bool = True, stop: str = ""
) -> GenerationRequest:
    stopping = Stopping(max_tokens=max_tokens, ignore_eos=ignore_eos, stop=(stop,) if stop else ())
    return GenerationRequest("r", prompt, BaseSelection(), Sampling(temperature=0.0), stopping)


def test_an_answer_starts_streams_and_finishes(engine: Engine) -> None:
    events = Reader(engine, request()).until_the_end()
    assert isinstance(events[0], Started)
    assert sum(len(event.tokens) for event in events if isinstance(event, Output)) == 5
    finished = events[-1]
    assert isinstance(finished, Finished)
    assert (finished.reason, finished.prompt_tokens, finished.completion_tokens) == (FinishReason.MAX_TOKENS, 3, 5)
    when_idle(engine)


class Words(Letters):
    """Every token is a word with the space before it, and texts begin without one."""

    strips_leading_space = True

    def token_bytes(self, token_id: int) -> bytes:
        return b" " + super().token_bytes(token_id)


def test_the_space_before_an_answer_is_one_if_it_goes_on_from_the_prompt(
    base: BaseModel, registry: AdapterRegistry
) -> None:
    words = dataclasses.replace(base, tokenizer=Words())  # type: ignore[arg-type]
    engine = Engine(words, registry, EngineConfig(max_waiting=3, kv_cache_tokens=256, context_length=64))
    engine.start()
    try:
        readers = [Reader(engine, dataclasses.replace(request(), begins_text=begins)) for begins in (False, True)]
        for reader in readers:
            reader.until_the_end()
    finally:
        engine.stop()
    assert len(readers[0].text) == 10
    assert readers[0].text == " " + readers[1].text


def test_the_context_ends_an_answer_that_would_outgrow_it(engine: Engine) -> None:
    finished = Reader(engine, request(tuple(range(1, 24)) * 2, max_tokens=None)).until_the_end()[-1]
    assert isinstance(finished, Finished)
    assert (finished.reason, finished.prompt_tokens + finished.completion_tokens) == (FinishReason.CONTEXT, 64)


def test_a_stop_string_ends_the_answer_and_is_not_shown(engine: Engine) -> None:
    whole = Reader(engine, request(max_tokens=20))
    whole.until_the_end()
    stop = whole.text[5:7]
    stopped = Reader(engine, request(max_tokens=20, stop=stop))
    finished = stopped.until_the_end()[-1]
    assert isinstance(finished, Finished)
    assert (finished.reason, finished.stop) == (FinishReason.STOP, stop)
    assert stopped.text == whole.text[: whole.text.index(stop)]
    when_idle(engine)


def test_more_requests_than_fit_wait_for_blocks_and_all_end(base: BaseModel, registry: AdapterRegistry) -> None:
    engine = Engine(base, registry, EngineConfig(kv_cache_tokens=64))
    engine.start()
    readers = [Reader(engine, request((1, 2, i), max_tokens=20)) for i in range(8)]
    alone = [Reader(engine, request((1, 2, i), max_tokens=20)) for i in range(8)]
    for reader in readers + alone:
        reader.until_the_end()
    assert [r.text for r in readers] == [r.text for r in alone]
    when_idle(engine)
    engine.stop()


def test_a_cancelled_request_gives_everything_back(engine: Engine) -> None:
    reader = Reader(engine, request(max_tokens=50))
    reader.stream.cancel()
    when_idle(engine)


@pytest.mark.parametrize(
    ("what", "error", "message"),
    [
        (request(()), InvalidRequest, "no tokens"),
        (request(tuple([1] * 64)), PromptTooLong, "64 tokens and the context holds 64: send at most 63"),
    ],
)
def test_a_prompt_that_cannot_run_is_refused_at_once(
    engine: Engine, what: GenerationRequest, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        engine.submit(what, lambda: None)
    when_idle(engine)


def test_a_request_larger_than_the_cache_is_refused_and_its_lease_returned(
    base: BaseModel, registry: AdapterRegistry
) -> None:
    engine = Engine(base, registry, EngineConfig(kv_cache_tokens=32))
    engine.start()
    with pytest.raises(RequestTooLarge, match="needs 48 cache tokens and there are 32"):
        engine.submit(request(max_tokens=40), lambda: None)
    engine.stop()


def test_an_unknown_adapter_is_refused_before_the_first_token(engine: Engine) -> None:
    with pytest.raises(AdapterNotFound, match="unheard-of"):
        engine.submit(GenerationRequest("r", (1,), LoraSelection({"unheard-of": 1.0})), lambda: None)


def test_a_full_queue_refuses_and_names_its_length(base: BaseModel, registry: AdapterRegistry) -> None:
    # The engine's thread is started after the queue is full, so that the test does not race with it.
    engine = Engine(base, registry, EngineConfig(max_waiting=2))
    with pytest.raises(EngineStopped):
        engine.submit(request(), lambda: None)
    gate = threading.Event()
    step = engine.step
    engine.step = lambda: (gate.wait(60), step())[1]  # type: ignore[method-assign]
    engine.start()
    readers = [Reader(engine, request()) for _ in range(2)]
    with pytest.raises(QueueFull, match="2 requests are waiting"):
        engine.submit(request(), lambda: None)
    gate.set()
    for reader in readers:
        reader.until_the_end()
    engine.stop()


def test_a_reader_that_never_reads_loses_its_request_and_nobody_else_does(
    base: BaseModel, registry: AdapterRegistry
) -> None:
    engine = Engine(base, registry, EngineConfig(kv_cache_tokens=4096, slow_reader_seconds=0.05))
    engine.start()
    silent = engine.submit(request(max_tokens=1000), lambda: None)
    other = Reader(engine, request(max_tokens=30))
    assert isinstance(other.until_the_end()[-1], Finished)
    when_idle(engine)
    last = silent.take()[-1]
    assert isinstance(last, Failed)
    assert isinstance(last.error, ReaderTooSlow)
    engine.stop()


def test_no_reader_is_blamed_for_a_time_in_which_the_engine_stood_still(
    base: BaseModel, registry: AdapterRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inference_svc.engine.engine.STANDSTILL_SECONDS", 1.0)
    engine = Engine(base, registry, EngineConfig(kv_cache_tokens=4096, slow_reader_seconds=1.5))
    goes_on = threading.Event()
    step, numbers = engine.step, itertools.count()

    def stands_still() -> None:
        if next(numbers) == 3:
            time.sleep(2.0)
            goes_on.set()
        step()

    engine.step = stands_still  # type: ignore[method-assign]
    engine.start()
    stream = engine.submit(request(max_tokens=1000), lambda: None)
    assert goes_on.wait(60)
    events = stream.take()
    while not isinstance(events[-1], Finished | Failed):
        time.sleep(0.01)
        events += stream.take()
    assert isinstance(events[-1], Finished)
    engine.stop()


def test_a_step_that_raises_ends_every_request_and_turns_health(base: BaseModel, registry: AdapterRegistry) -> None:
    engine = Engine(base, registry, EngineConfig())
    calls = 0
    step = engine.step

    def fails_later() -> None:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise RuntimeError("a broken kernel")
        step()

    engine.step = fails_later  # type: ignore[method-assign]
    engine.start()
    readers = [Reader(engine, request(max_tokens=100)) for _ in range(3)]
    for reader in readers:
        last = reader.until_the_end()[-1]
        assert isinstance(last, Failed)
        assert isinstance(last.error, EngineStopped)
    when_idle(engine)
    assert not engine.is_healthy
    with pytest.raises(EngineStopped, match="a broken kernel"):
        engine.submit(request(), lambda: None)


def test_draining_refuses_new_requests_and_finishes_running_ones(engine: Engine) -> None:
    reader = Reader(engine, request(max_tokens=30))
    assert engine.drain(60)
    with pytest.raises(Draining):
        engine.submit(request(), lambda: None)
    assert isinstance(reader.until_the_end()[-1], Finished)


def test_stopping_fails_what_still_runs(base: BaseModel, registry: AdapterRegistry) -> None:
    engine = Engine(base, registry, EngineConfig(kv_cache_tokens=4096))
    engine.start()
    reader = Reader(engine, request(max_tokens=1000))
    engine.stop()
    last = reader.until_the_end()[-1]
    assert isinstance(last, Failed)
    assert isinstance(last.error, Draining)
    engine.check_integrity()
