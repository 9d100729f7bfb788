"""Non-granular scalings: what they are by a slow reference, beside whom, through preemption, and what they save."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from inference_svc.adapters.classifier import XLoraOverrides
from inference_svc.adapters.registry import AdapterRegistry
from inference_svc.adapters.selection import ActiveSelection, BaseSelection, LoraSelection, Selection, XLoraSelection
from inference_svc.engine.engine import Engine, EngineConfig
from inference_svc.engine.request import (
    GenerationRequest,
    Output,
    ResponseOptions,
    ScalingsChunk,
    ScalingsDetail,
    XLoraOptions,
)
from inference_svc.errors import InvalidRequest
from inference_svc.layers.batch import AdapterRows, AttentionSegment, ForwardBatch
from inference_svc.models.base_model import BaseModel
from inference_svc.scheduling.granularity import (
    EVERY_TOKEN,
    FrozenAfter,
    FrozenWhenSettled,
    Granularity,
    RecomputedEvery,
)
from tests.inference_svc.adapters.conftest import AdapterWriter
from tests.inference_svc.engine.crowd import (
    SYSTEM_PROMPT,
    Kind,
    Solo,
    answered,
    load_mixture,
    request,
    rows_of_passes,
    under_pressure,
    xlora_folder,
)
from tests.inference_svc.engine.tiny_engine import Reader, own_cache, when_idle

GRANULARITIES: list[Granularity] = [
    EVERY_TOKEN,
    FrozenAfter(0),
    FrozenAfter(1),
    FrozenAfter(4),
    FrozenAfter(100),
    RecomputedEvery(1),
    RecomputedEvery(3),
    RecomputedEvery(7),
    FrozenWhenSettled(0.5, 2),
    FrozenWhenSettled(1.0, 3),
    FrozenWhenSettled(0.0, 1),
]
MIXTURES = ("mixture", "compass")


def xlora_request(
    granularity: Granularity | None, prompt: tuple[int, ...] = SYSTEM_PROMPT, *, name: str = "mixture", new: int = 20
) -> GenerationRequest:
    asked = request(Kind(XLoraSelection(name)), prompt, new=new, reports=True)
    return dataclasses.replace(asked, xlora=XLoraOptions(granularity))


def forward(base: BaseModel, token_ids: list[int], adapters: tuple[AdapterRows, ...]) -> Tensor:
    """Hidden states of all tokens at once, on a cache of their own."""
    cache = own_cache(base, len(token_ids))
    rows = torch.arange(len(token_ids))
    segment = AttentionSegment(0, len(token_ids), 0, torch.arange(cache.storage[0].shape[1]))
    return base.executor.hidden_states(ForwardBatch(torch.tensor(token_ids), rows, rows, (segment,), adapters), cache)


def held_rows(granularity: Granularity, fresh: Tensor, num_prompt: int) -> list[int]:
    """For each position the one whose scalings it runs with, found by walking through the answer from its start."""
    rows: list[int] = []
    streak, frozen = 0, None
    for position in range(len(fresh)):
        decode_pass = position - num_prompt + 1
        if frozen is not None:
            rows.append(frozen)
            continue
        match granularity:
            case RecomputedEvery(passes) if decode_pass > 0 and decode_pass % passes:
                rows.append(rows[-1])
            case _:
                rows.append(position)
        if decode_pass >= 0:
            match granularity:
                case FrozenAfter(passes) if decode_pass == passes:
                    frozen = position
                case FrozenWhenSettled(epsilon, passes) if decode_pass > 0:
                    change = (fresh[position] - fresh[position - 1]).abs().max()
                    streak = streak + 1 if change <= epsilon else 0
                    frozen = position if streak == passes else None
    return rows


@torch.inference_mode()
def slow_answer(base: BaseModel, registry: AdapterRegistry, what: GenerationRequest) -> tuple[list[int], Tensor]:
    """Greedy tokens and applied scalings, everything computed anew for every token."""
    lease = registry.lease(what.selection)
    xlora = lease.mixture.xlora
    lease.release()
    assert xlora is not None
    token_ids = list(what.prompt_token_ids)
    applied = torch.empty(0)
    while len(token_ids) < len(what.prompt_token_ids) + (what.stopping.max_tokens or 0):
        fresh = torch.cat([xlora.classifier.scalings(row) for row in torch.split(forward(base, token_ids, ()), 1)])
        applied = fresh[held_rows(what.xlora.granularity or EVERY_TOKEN, fresh, len(what.prompt_token_ids))]
        adapters = (AdapterRows(xlora.bank, torch.arange(len(token_ids)), applied),)
        newest = (AdapterRows(xlora.bank, torch.tensor([0]), applied[-1:]),)
        logits = base.executor.logits(forward(base, token_ids, adapters)[-1:], newest)
        token_ids.append(int(logits[0].argmax()))
    return token_ids[len(what.prompt_token_ids) :], applied


@pytest.mark.parametrize("granularity", GRANULARITIES, ids=str)
def test_tokens_and_scalings_are_those_of_the_slow_reference(
    base: BaseModel, registry: AdapterRegistry, solo: Solo, granularity: Granularity
) -> None:
    for name, prompt in (("mixture", SYSTEM_PROMPT), ("compass", (4,))):
        what = xlora_request(granularity, prompt, name=name)
        tokens, scalings = slow_answer(base, registry, what)
        answer = solo.answer(what)
        assert [token.token_id for token in answer.tokens] == tokens
        assert answer.scalings == tuple(row.numpy().tobytes() for row in scalings)


def test_the_granularities_of_these_tests_really_differ(solo: Solo) -> None:
    answers = [solo.answer(xlora_request(granularity)).scalings for granularity in GRANULARITIES]
    as_every_token = [what for what, answer in zip(GRANULARITIES, answers, strict=True) if answer == answers[0]]
    assert as_every_token == [EVERY_TOKEN, FrozenAfter(100), RecomputedEvery(1), FrozenWhenSettled(0.0, 1)]
    assert len(set(answers)) == len(GRANULARITIES) - 3


def test_a_request_that_names_no_granularity_has_that_of_the_service(
    base: BaseModel, registry: AdapterRegistry, solo: Solo
) -> None:
    engine = Engine(base, registry, EngineConfig(granularity=FrozenAfter(1)))
    engine.start()
    default = answered(Reader(engine, xlora_request(None)).until_the_end())
    own = answered(Reader(engine, xlora_request(EVERY_TOKEN)).until_the_end())
    engine.stop()
    assert default == solo.answer(xlora_request(FrozenAfter(1)))
    assert own == solo.answer(xlora_request(EVERY_TOKEN))


@pytest.mark.parametrize(("every", "budget"), [(2, 48), (5, 12)])  # 12: too few for a scaling pass to catch up at once
def test_answers_in_a_crowd_and_through_preemption_are_those_alone(
    base: BaseModel, registry: AdapterRegistry, solo: Solo, every: int, budget: int
) -> None:
    others: list[Selection] = [BaseSelection(), LoraSelection({"red": 1.0}), LoraSelection({"red": 0.75, "blue": 0.5})]
    shuffle = random.Random(every)
    crowd = [request(Kind(kind), (*SYSTEM_PROMPT, tail), new=20, reports=True) for tail, kind in enumerate(others)]
    crowd += [
        xlora_request(granularity, (*SYSTEM_PROMPT, *range(shuffle.randrange(12))), name=name)
        for granularity in GRANULARITIES
        for name in MIXTURES
    ]
    config = EngineConfig(
        max_batch_tokens=budget,
        max_running=12,
        kv_cache_tokens=40 * 16,
        slow_reader_seconds=300,  # one answer is read after the other, on machines of any speed
    )
    engine = Engine(base, registry, config)
    under_pressure(engine, every=every)
    rows = rows_of_passes(engine)
    engine.start()
    for _ in range(2):  # the second time with everything computed before in reach
        shuffle.shuffle(crowd)
        readers = [Reader(engine, what) for what in crowd]
        for reader, what in zip(readers, crowd, strict=True):
            assert answered(reader.until_the_end()) == solo.answer(what)
    assert engine.scheduler.counters.preemptions > 20
    assert max(rows) <= budget
    when_idle(engine)
    engine.stop()


def test_a_frozen_answer_never_takes_shared_blocks_of_scalings_that_it_does_not_have(
    base: BaseModel, registry: AdapterRegistry, solo: Solo
) -> None:
    """Its own tokens may be another request's prompt, whose blocks hold other keys and values."""
    frozen = xlora_request(FrozenAfter(0), new=60)
    tokens = tuple(token.token_id for token in solo.answer(frozen).tokens)
    engine = Engine(base, registry, EngineConfig(context_length=128))
    engine.start()
    longer = xlora_request(EVERY_TOKEN, (*SYSTEM_PROMPT, *tokens[:50]), new=1)
    Reader(engine, longer).until_the_end()
    under_pressure(engine, every=9)
    readers = [Reader(engine, what) for what in (request(Kind(BaseSelection()), (1, 2), new=80), frozen)]
    answers = [answered(reader.until_the_end()) for reader in readers]
    assert engine.scheduler.counters.preemptions > 0
    assert answers[1] == solo.answer(frozen)
    when_idle(engine)
    engine.stop()


def test_a_frozen_request_runs_one_pass_and_holds_no_blocks_of_the_scaling_pass(
    base: BaseModel, registry: AdapterRegistry
) -> None:
    engine = stepped_engine(base, registry)
    passes = rows_of_passes(engine)
    stream = engine.submit(xlora_request(FrozenAfter(2), new=10), lambda: None)
    held, counts = [], []
    while engine.num_unfinished:
        before = len(passes)
        engine.step()
        held.append(engine.pool.num_blocks - engine.pool.num_free)
        counts.append(len(passes) - before)
    # The prompt and passes 1 and 2 run twice over; 37 to 46 tokens lie in three blocks, as long as it runs.
    assert counts == [2, 2, 2] + [1] * 7
    assert held == [6, 6] + [3] * 7 + [0]
    assert len(stream.take()) > 0


def test_skipped_positions_are_caught_up_in_one_scaling_pass(base: BaseModel, registry: AdapterRegistry) -> None:
    engine = stepped_engine(base, registry)
    rows = rows_of_passes(engine)
    engine.submit(xlora_request(RecomputedEvery(4), (1, 2, 3), new=9), lambda: None)
    while engine.num_unfinished:
        engine.step()
    assert rows == [3, 3, 1, 1, 1, 4, 1, 1, 1, 1, 4, 1]


SCALINGS = ResponseOptions(scalings=ScalingsDetail.MEAN)


@pytest.mark.parametrize(
    ("selection", "changes", "field", "said"),
    [
        (BaseSelection(), {"xlora": XLoraOptions(FrozenAfter(1))}, "xlora", "runs with the base model: select"),
        (LoraSelection({"red": 1.0}), {"xlora": XLoraOptions(None, XLoraOverrides(1))}, "xlora", "the LoRA `red`: s"),
        (XLoraSelection("mixture"), {"xlora": XLoraOptions(None, XLoraOverrides(4))}, "xlora.top_k_lora", "4 adapters"),
        (LoraSelection({"red": 1.0, "blue": 0.0}), {"response": SCALINGS}, "response.scalings", "LoRAs `red`, `blue`:"),
        (ActiveSelection(), {"response": SCALINGS}, "response.scalings", "base model, which is the active default: s"),
    ],
)
def test_what_only_an_xlora_can_do_is_refused_without_one_before_the_first_token(
    base: BaseModel, registry: AdapterRegistry, selection: Selection, changes: dict[str, Any], field: str, said: str
) -> None:
    what = dataclasses.replace(request(Kind(selection), (1, 2)), **changes)
    engine = Engine(base, registry, EngineConfig())
    engine.start()
    with pytest.raises(InvalidRequest, match=said) as caught:
        engine.submit(what, lambda: None)
    assert caught.value.field == field
    engine.stop()
    engine.check_integrity()
    assert all(adapter.active_requests == 0 for adapter in registry.list_all())


def test_overrides_are_of_one_request_alone(base: BaseModel, registry: AdapterRegistry, solo: Solo) -> None:
    overrides = [
        XLoraOverrides(),
        XLoraOverrides(top_k_lora=1),
        XLoraOverrides(top_k_lora=3),
        XLoraOverrides(softmax_temperature=0.1),
        XLoraOverrides(global_scaling_weight=0.0),
        XLoraOverrides(global_scaling_weight=-2.0, softmax_temperature=5.0),
    ]
    crowd = [dataclasses.replace(xlora_request(None), xlora=XLoraOptions(None, given)) for given in overrides]
    engine = Engine(base, registry, EngineConfig())
    engine.start()
    for _ in range(2):
        answers = [answered(reader.until_the_end()) for reader in [Reader(engine, what) for what in crowd]]
        assert answers == [solo.answer(what) for what in crowd]
    engine.stop()
    values = [scalings_of(solo.engine, what) for what in crowd]
    assert torch.equal(values[0], values[2])  # as many as there are is all of them
    assert ((values[1] > 0).sum(-1) == 1).all()
    sharp, plain = (value[: len(SYSTEM_PROMPT)].max(-1).values for value in (values[3], values[0]))
    assert (sharp >= plain).all()
    base_answer = solo.answer(request(Kind(BaseSelection()), SYSTEM_PROMPT, new=20, reports=True))
    assert answers[4].tokens == base_answer.tokens


@pytest.mark.parametrize(
    "given",
    [{"top_k_lora": 2}, {"softmax_temperature": 0.25}, {"global_scaling_weight": -0.5, "top_k_lora": 1}],
    ids=str,
)
def test_an_override_is_what_a_mixture_that_is_configured_so_computes(
    base: BaseModel, registry: AdapterRegistry, solo: Solo, tmp_path: Path, given: dict[str, float]
) -> None:
    folder = xlora_folder(AdapterWriter(tmp_path, base.shape), "mixture", 5, **given)  # else as the crowd's own
    name = "-".join(given)  # of its own, as `solo` knows a request by the names in it
    registry.load(name, load_mixture(folder, base), source=name)
    overrides = XLoraOverrides(**given)  # type: ignore[arg-type]
    overridden = dataclasses.replace(xlora_request(None), xlora=XLoraOptions(None, overrides))
    answers = [solo.answer(what) for what in (overridden, xlora_request(None, name=name))]
    registry.unload(name)
    assert answers[0].tokens == answers[1].tokens
    assert answers[0].scalings == answers[1].scalings != solo.answer(xlora_request(None)).scalings


def stepped_engine(base: BaseModel, registry: AdapterRegistry) -> Engine:
    """An engine without a thread: the test takes the steps, each of one token."""
    engine = Engine(base, registry, EngineConfig(prefix_caching=False, speculative_tokens=0))
    engine._check_accepting = lambda: None  # type: ignore[method-assign]
    return engine


def scalings_of(engine: Engine, what: GenerationRequest) -> Tensor:
    chunks: list[ScalingsChunk] = []
    for event in Reader(engine, what).until_the_end():
        chunks += event.scalings if isinstance(event, Output) else ()
    return torch.cat([torch.from_numpy(chunk.values) for chunk in chunks])
