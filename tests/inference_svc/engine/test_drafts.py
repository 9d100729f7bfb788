"""Drafts change no answer: every kind of request, to the bit, in batch-invariant mode."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from inference_svc.adapters.registry import AdapterRegistry
from inference_svc.engine.engine import Engine, EngineConfig
from inference_svc.engine.request import GenerationRequest, Sampling, Stopping
from inference_svc.models.base_model import BaseModel
from inference_svc.scheduling.prompt_lookup import Draft
from tests.inference_svc.engine.crowd import KINDS, SYSTEM_PROMPT, Kind, Solo, answered, request, under_pressure
from tests.inference_svc.engine.tiny_engine import MODELS, Reader, when_idle

pytestmark = pytest.mark.parametrize("base", MODELS, indirect=True, scope="module")


class CheckEverything:
    """Has every draft checked to its end, whatever that costs."""

    most_tokens = 5

    def choose(self, drafts: Sequence[Draft], num_decoding: int, room: int, *, has_prompts: bool) -> list[int]:
        counts = []
        for draft in drafts:
            counts.append(min(len(draft.token_ids), max(0, room)))
            room -= counts[-1]
        return counts


def drafting_engine(base: BaseModel, registry: AdapterRegistry, config: EngineConfig) -> Engine:
    engine = Engine(base, registry, config)
    engine.scheduler._speculation = CheckEverything()  # type: ignore[assignment]
    return engine


# A tiny random model soon says the same over and over, and words of the prompt often enough.
def crowd(*, reports: bool, temperature: float) -> list[GenerationRequest]:
    return [
        request(kind, (*SYSTEM_PROMPT, *SYSTEM_PROMPT[: 3 + i]), new=30 + i, reports=reports, temperature=temperature)
        for i, kind in enumerate(KINDS.values())
    ]


@pytest.mark.parametrize("every", [0, 6])  # steps after which the youngest request is preempted; 0: never
@pytest.mark.parametrize("reports", [False, True])
@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_an_answer_with_drafts_is_the_one_without(
    base: BaseModel, registry: AdapterRegistry, solo: Solo, reports: bool, temperature: float, every: int
) -> None:
    config = EngineConfig(max_batch_tokens=64, kv_cache_tokens=1024, slow_reader_seconds=300)
    engine = drafting_engine(base, registry, config)
    if every:
        under_pressure(engine, every=every)
    engine.start()
    requests = crowd(reports=reports, temperature=temperature)
    readers = [Reader(engine, what) for what in requests]
    for what, reader in zip(requests, readers, strict=True):
        assert answered(reader.until_the_end()) == solo.answer(what)
    counters = engine.scheduler.counters
    assert 0 < counters.accepted_tokens < counters.drafted_tokens
    when_idle(engine)
    engine.stop()
    engine.check_integrity()


@pytest.mark.parametrize("name", ["base", "xlora", "frozen"])
def test_an_answer_ends_amid_a_draft_where_it_ends_without(
    base: BaseModel, registry: AdapterRegistry, solo: Solo, name: str
) -> None:
    kind: Kind = KINDS[name]
    engine = drafting_engine(base, registry, EngineConfig(prefix_caching=False, kv_cache_tokens=512))
    engine.start()
    text = solo.answer(request(kind, SYSTEM_PROMPT, new=40)).text
    stops = [Stopping(max_tokens=40, stop=(text[at : at + 3],), ignore_eos=True) for at in range(5, 30, 3)]
    lengths = [Stopping(max_tokens=count, min_tokens=count // 2) for count in range(1, 14)]
    for stopping in (*stops, *lengths):
        for sampling in (Sampling(temperature=0.0, repetition_penalty=1.2), Sampling(temperature=0.0)):
            what = GenerationRequest("r", SYSTEM_PROMPT, kind.selection, sampling, stopping, xlora=kind.xlora)
            assert answered(Reader(engine, what).until_the_end()) == solo.answer(what)
    assert engine.scheduler.counters.accepted_tokens > 0
    when_idle(engine)
    engine.stop()
    engine.check_integrity()
