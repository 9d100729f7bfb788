"""Where prompts are computed otherwise than what is generated, a token stays what it is, however often it is computed.

On a native executor and on one whose prompts another model computes.
"""

from __future__ import annotations

import itertools

import pytest
from torch import Tensor

from inference_svc.adapters.registry import AdapterRegistry
from inference_svc.engine.engine import Engine, EngineConfig
from inference_svc.kv_cache.cache import KVCache
from inference_svc.layers.batch import ForwardBatch
from inference_svc.models.base_model import BaseModel
from inference_svc.scheduling.sequence import ScheduledSequence
from tests.inference_svc.engine.crowd import (
    KINDS,
    SYSTEM_PROMPT,
    Solo,
    answered,
    finished_of,
    request,
    rows_of_passes,
    under_pressure,
)
from tests.inference_svc.engine.tiny_engine import Reader, when_idle

pytestmark = pytest.mark.parametrize("base", ["native", "two models"], indirect=True, scope="module")


def ended(engine: Engine) -> None:
    when_idle(engine)
    engine.stop()


def started(base: BaseModel, registry: AdapterRegistry, config: EngineConfig | None = None) -> Engine:
    engine = Engine(base, registry, config or EngineConfig(max_batch_tokens=48, kv_cache_tokens=4096))
    engine.start()
    return engine


@pytest.mark.parametrize("kind", ["base", "lora", "pair", "xlora", "valued xlora", "frozen"])
def test_a_prompt_that_contains_an_earlier_answer_is_computed_as_a_prompt(
    base: BaseModel, registry: AdapterRegistry, solo: Solo, kind: str
) -> None:
    engine = started(base, registry)
    first = Reader(engine, request(KINDS[kind], SYSTEM_PROMPT, new=30))
    answer = [token.token_id for token in answered(first.until_the_end()).tokens]
    second = request(KINDS[kind], (*SYSTEM_PROMPT, *answer, 1, 2, 3))
    cached = []
    for _ in range(2):
        reader = Reader(engine, second)
        assert answered(reader.until_the_end()) == solo.answer(second)
        cached.append(finished_of(reader).cached_prompt_tokens)
    # First the whole blocks of the earlier prompt alone, then those of its own.
    separates = base.executor.separates_prompts
    answers_too = 48 if kind == "frozen" and not separates else 64
    assert cached == [32 if separates else answers_too, 64]
    # Asked once more, the earlier request finds its own prompt, and none of what was computed as a prompt after it.
    again = request(KINDS[kind], SYSTEM_PROMPT, new=30)
    assert answered(Reader(engine, again).until_the_end()) == solo.answer(again)
    ended(engine)


@pytest.mark.parametrize("kind", ["base", "lora", "xlora"])
def test_an_answer_that_is_computed_anew_finds_nothing_that_was_computed_as_another_prompt(
    base: BaseModel, registry: AdapterRegistry, solo: Solo, kind: str
) -> None:
    long = request(KINDS[kind], SYSTEM_PROMPT, new=60)
    answer = [token.token_id for token in solo.answer(long).tokens]
    engine = Engine(base, registry, EngineConfig(kv_cache_tokens=4096, slow_reader_seconds=300))
    scheduler, schedule = engine.scheduler, engine.scheduler.schedule
    is_due = True

    def preempt_once_and_schedule() -> list[ScheduledSequence]:
        nonlocal is_due
        if is_due and scheduler.num_running and len(scheduler._running[0].token_ids) >= len(SYSTEM_PROMPT) + 50:
            scheduler._preempt(scheduler._running[0])
            is_due = False
        return schedule()

    scheduler.schedule = preempt_once_and_schedule  # type: ignore[method-assign]
    engine.start()
    # The other one's prompt is what the answer will be, and is computed before it.
    other = Reader(engine, request(KINDS[kind], (*SYSTEM_PROMPT, *answer[:45]), new=1))
    finished_of(other)
    assert answered(Reader(engine, long).until_the_end()) == solo.answer(long)
    assert not is_due
    ended(engine)


@pytest.mark.parametrize("kind", ["base", "lora", "xlora"])
def test_a_text_as_a_prompt_is_not_what_it_is_as_an_answer(base: BaseModel, solo: Solo, kind: str) -> None:
    if not base.executor.separates_prompts:
        pytest.skip("this processor has no matrix tiles of bfloat16")
    tokens = solo.answer(request(KINDS[kind], SYSTEM_PROMPT, new=10)).tokens
    text = (*SYSTEM_PROMPT, *(token.token_id for token in tokens[:9]))
    (as_prompt,) = solo.answer(request(KINDS[kind], text, new=1)).tokens
    assert as_prompt != tokens[9]  # its log probability is another


@pytest.mark.parametrize("reports", [False, True])
def test_base_and_mixtures_one_after_the_other_answer_as_each_alone(
    base: BaseModel, registry: AdapterRegistry, solo: Solo, reports: bool
) -> None:
    for order in itertools.permutations(("base", "xlora", "frozen at once")):
        engine = started(base, registry)
        for kind in (*order, *order):
            what = request(KINDS[kind], SYSTEM_PROMPT, reports=reports)
            assert answered(Reader(engine, what).until_the_end()) == solo.answer(what)
        ended(engine)


def test_no_pass_has_rows_of_prompts_and_of_answers(base: BaseModel, registry: AdapterRegistry, solo: Solo) -> None:
    if not base.executor.separates_prompts:
        pytest.skip("this processor has no matrix tiles of bfloat16")
    config = EngineConfig(max_batch_tokens=64, kv_cache_tokens=2048, prefix_caching=False, slow_reader_seconds=300)
    engine = Engine(base, registry, config)
    under_pressure(engine, every=5)
    rows_of_passes(engine)  # from here on the executor is a copy, which may be changed
    hidden_states, length = engine._runner.executor.hidden_states, 20
    answers_anew = 0

    def checked(batch: ForwardBatch, cache: KVCache) -> Tensor:
        nonlocal answers_anew
        if not batch.has_scaling_pass:
            for segment in batch.segments:
                end = segment.first_position + segment.num_rows
                assert end <= length if batch.is_of_prompts else segment.first_position >= length
                answers_anew += (
                    segment.first_position == length and segment.num_rows > 1 + engine.config.speculative_tokens
                )
        return hidden_states(batch, cache)

    engine._runner.executor.hidden_states = checked  # type: ignore[method-assign]
    engine.start()
    crowd = [request(kind, SYSTEM_PROMPT[:length], new=30, reports=True) for kind in KINDS.values()]
    readers = [Reader(engine, what) for what in crowd]
    for what, reader in zip(crowd, readers, strict=True):
        assert answered(reader.until_the_end()) == solo.answer(what)
    assert answers_anew > 0
    assert engine.is_healthy
    ended(engine)
