"""What is counted of requests, tokens, steps, memory and adapters, and that it is what really happened."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import generate_latest
from prometheus_client.registry import CollectorRegistry

from inference_svc.adapters.registry import AdapterRegistry
from inference_svc.adapters.selection import LoraSelection
from inference_svc.engine.engine import Engine, EngineConfig
from inference_svc.metrics import EngineMetrics
from inference_svc.models.base_model import BaseModel
from tests.inference_svc.engine.crowd import KINDS, SYSTEM_PROMPT, Kind, finished_of, request, tiny_registry
from tests.inference_svc.engine.tiny_engine import Reader, tiny_base_model, when_idle
from tests.prometheus import Samples, parsed_metrics


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    return tiny_base_model(tmp_path_factory.mktemp("model"), hidden=32, heads=4, ffn=48)


@pytest.fixture
def registry(base: BaseModel, tmp_path: Path) -> AdapterRegistry:
    return tiny_registry(base, tmp_path)


@pytest.fixture
def metrics() -> EngineMetrics:
    return EngineMetrics()


@pytest.fixture
def observed(base: BaseModel, registry: AdapterRegistry, metrics: EngineMetrics) -> Iterator[Engine]:
    config = EngineConfig(kv_cache_tokens=1024, context_length=128)
    subject = Engine(base, registry, config, metrics)
    metrics.watch(subject, registry)
    subject.start()
    yield subject
    subject.stop()


def samples_of(metrics: EngineMetrics) -> Samples:
    registry = CollectorRegistry()
    registry.register(metrics)
    return parsed_metrics(generate_latest(registry).decode())


def test_every_request_token_and_step_is_counted(observed: Engine, metrics: EngineMetrics) -> None:
    kinds = ["base", "lora", "pair", "xlora", "frozen", "base"]
    readers = [Reader(observed, request(KINDS[kind], SYSTEM_PROMPT, new=5)) for kind in kinds]
    finished = [finished_of(reader) for reader in readers]
    when_idle(observed)
    samples = samples_of(metrics)
    ended = {key[1]: value for key, value in samples.items() if key[0] == "loramux_requests_total"}
    assert ended == {("base", "max_tokens"): 2, ("lora", "max_tokens"): 2, ("xlora", "max_tokens"): 2}
    assert samples["loramux_completion_tokens_total", ()] == sum(end.completion_tokens for end in finished) == 30
    assert samples["loramux_time_to_first_token_seconds_count", ()] == samples["loramux_request_seconds_count", ()] == 6
    assert samples["loramux_inter_token_seconds_count", ()] == 30 - 6
    assert samples["loramux_prompt_tokens_total", ()] == 6 * 37
    assert samples["loramux_cached_prompt_tokens_total", ()] == sum(end.cached_prompt_tokens for end in finished)
    # Each row is of one step; X-LoRA rows count in the larger of their two passes.
    rows = 6 * 37 - samples["loramux_cached_prompt_tokens_total", ()] + 6 * 4
    assert samples["loramux_step_rows_sum", ()] >= rows
    accepted = samples["loramux_accepted_draft_tokens_total", ()]
    assert accepted <= samples["loramux_drafted_tokens_total", ()]
    # Each token of an answer is of a step of its own, if it was not drafted.
    assert samples["loramux_step_sequences_sum", ()] >= 6 * 5 - accepted
    assert samples["loramux_step_seconds_count", ()] == samples["loramux_step_rows_count", ()] >= 5
    assert samples["loramux_kv_cache_tokens", ("total",)] == samples["loramux_kv_cache_tokens", ("free",)] == 1024
    assert (samples["loramux_requests_running", ()], samples["loramux_requests_waiting", ()]) == (0, 0)
    assert samples["loramux_engine_healthy", ()] == 1


def test_what_does_not_end_by_itself_is_counted_by_how_it_did(observed: Engine, metrics: EngineMetrics) -> None:
    reader = Reader(observed, request(KINDS["lora"], SYSTEM_PROMPT, new=90))
    reader.stream.cancel()
    when_idle(observed)
    Reader(observed, request(KINDS["xlora"], SYSTEM_PROMPT, new=91))
    observed.stop()
    samples = samples_of(metrics)
    assert samples["loramux_requests_total", ("lora", "cancelled")] == 1
    assert samples["loramux_requests_total", ("xlora", "draining")] == 1
    assert samples["loramux_engine_healthy", ()] == 0


def test_adapters_in_memory_and_their_changes_are_counted(
    observed: Engine, registry: AdapterRegistry, metrics: EngineMetrics
) -> None:
    what = request(Kind(LoraSelection({"red": 1.0})), SYSTEM_PROMPT, new=90)
    reader = Reader(observed, what)
    registry.unload("red")
    samples = samples_of(metrics)
    assert (samples["loramux_adapters", ("resident",)], samples["loramux_adapters", ("retired",)]) == (4, 1)
    assert samples["loramux_adapter_bytes", ()] == registry.held_bytes > 0
    assert samples["loramux_adapter_events_total", ("loaded",)] == 5
    assert samples["loramux_adapter_events_total", ("unloaded",)] == 1
    assert samples["loramux_adapter_events_total", ("evicted",)] == 0
    reader.until_the_end()
    when_idle(observed)
    assert samples_of(metrics)["loramux_adapters", ("retired",)] == 0


def test_drafts_are_counted_and_how_many_tokens_of_them_were_right(observed: Engine, metrics: EngineMetrics) -> None:
    for num_rows in range(1, 8):  # rows cost nothing: every draft is checked
        observed.scheduler.pace.note(num_rows, 0, 1.0)
    finished_of(Reader(observed, request(KINDS["base"], SYSTEM_PROMPT, new=60)))
    when_idle(observed)
    samples, counters = samples_of(metrics), observed.scheduler.counters
    assert 0 < counters.accepted_tokens < 60
    assert samples["loramux_drafted_tokens_total", ()] == counters.drafted_tokens
    assert samples["loramux_accepted_draft_tokens_total", ()] == counters.accepted_tokens
    assert samples["loramux_completion_tokens_total", ()] == 60
    assert samples["loramux_step_sequences_sum", ()] == 60 - counters.accepted_tokens
