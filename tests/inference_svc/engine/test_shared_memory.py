"""Shared prefixes and preemption never change an answer: every kind of request, to the bit, in batch-invariant mode."""

from __future__ import annotations

import dataclasses
import itertools
import threading
from collections.abc import Iterator

import pytest

from inference_svc.adapters.base_model import AdapterLimits
from inference_svc.adapters.lora import load_lora
from inference_svc.adapters.registry import AdapterRegistry
from inference_svc.adapters.selection import BaseSelection, LoraSelection, Mixture, XLoraSelection
from inference_svc.engine.engine import Engine, EngineConfig
from inference_svc.engine.request import GenerationRequest
from inference_svc.models.base_model import BaseModel
from tests.inference_svc.adapters.conftest import AdapterWriter
from tests.inference_svc.engine.crowd import (
    EXPERTS,
    KINDS,
    SYSTEM_PROMPT,
    Kind,
    Solo,
    answered,
    finished_of,
    load_mixture,
    lora_folder,
    request,
    rows_of_passes,
    under_pressure,
    xlora_folder,
)
from tests.inference_svc.engine.tiny_engine import MODELS, Reader, when_idle

pytestmark = pytest.mark.parametrize("base", MODELS, indirect=True, scope="module")


def all_kinds(*, reports: bool, temperature: float = 0.0) -> list[GenerationRequest]:
    return [
        request(kind, (*SYSTEM_PROMPT, *range(tail)), reports=reports, temperature=temperature)
        for kind, tail in zip(KINDS.values(), (3, 11, 12, 1, 5, 2, 4, 3, 7, 2, 12, 3), strict=True)
    ]


@pytest.fixture
def engine(base: BaseModel, registry: AdapterRegistry) -> Iterator[Engine]:
    subject = Engine(base, registry, EngineConfig(max_batch_tokens=48, kv_cache_tokens=4096))
    subject.start()
    yield subject
    when_idle(subject)
    subject.stop()


@pytest.mark.parametrize("reports", [False, True])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_an_answer_from_a_warm_cache_is_the_cold_one(
    engine: Engine, solo: Solo, reports: bool, temperature: float
) -> None:
    crowd = all_kinds(reports=reports, temperature=temperature)
    for _ in range(3):
        readers = [Reader(engine, what) for what in crowd]
        for what, reader in zip(crowd, readers, strict=True):
            assert answered(reader.until_the_end()) == solo.answer(what)
    cached = [finished_of(reader).cached_prompt_tokens for reader in readers]
    # Of every prompt all full blocks, but not its last token; what reports on its prompt computes it.
    full = [(len(what.prompt_token_ids) - 1) // 16 * 16 for what in crowd]
    assert cached == ([0] * len(crowd) if reports else full)


@pytest.mark.parametrize("reports", [False, True])
@pytest.mark.parametrize("prefix_caching", [True, False])
def test_preemption_changes_no_answer(
    base: BaseModel, registry: AdapterRegistry, solo: Solo, reports: bool, prefix_caching: bool
) -> None:
    config = EngineConfig(
        max_batch_tokens=12,
        max_running=8,
        kv_cache_tokens=14 * 16,
        prefix_caching=prefix_caching,
        slow_reader_seconds=300,  # one answer is read after the other, on machines of any speed
    )
    engine = Engine(base, registry, config)
    everybody_is_here = threading.Event()
    under_pressure(engine, every=5)
    step = engine.step
    engine.step = lambda: (everybody_is_here.wait(60), step())[1]  # type: ignore[method-assign]
    engine.start()
    # Of many lengths, so that some are preempted while they decode and some amid their prompts.
    crowd = [
        request(kind, SYSTEM_PROMPT[: 3 if i % 3 else 37], new=20 + 3 * i, temperature=0.7, reports=reports)
        for i, kind in enumerate(KINDS.values())
    ]
    readers = [Reader(engine, what) for what in crowd]
    everybody_is_here.set()
    for what, reader in zip(crowd, readers, strict=True):
        assert answered(reader.until_the_end()) == solo.answer(what)
    assert engine.scheduler.counters.preemptions > 20
    when_idle(engine)
    engine.stop()


@pytest.mark.parametrize(("one", "other"), list(itertools.combinations_with_replacement(KINDS, 2)))
def test_every_pair_of_kinds_in_one_batch_answers_as_each_alone(
    engine: Engine, solo: Solo, one: str, other: str
) -> None:
    crowd = [
        request(KINDS[one], (1, 2, 3, 4, 5), reports=True),
        request(KINDS[other], SYSTEM_PROMPT[:20], temperature=1.0, reports=True),
    ]
    readers = [Reader(engine, what) for what in crowd]
    for what, reader in zip(crowd, readers, strict=True):
        assert answered(reader.until_the_end()) == solo.answer(what)


def test_a_scaling_pass_shares_blocks_and_hidden_states_with_the_base_model_and_with_other_mixtures(
    base: BaseModel, engine: Engine, solo: Solo
) -> None:
    def rows_of(kind: str) -> list[int]:
        rows.clear()
        what = request(KINDS[kind], SYSTEM_PROMPT, new=1)
        assert answered(Reader(engine, what).until_the_end()) == expected[kind]
        return list(rows)

    expected = {kind: solo.answer(request(KINDS[kind], SYSTEM_PROMPT, new=1)) for kind in KINDS}
    rows = rows_of_passes(engine)
    assert rows_of("base") == [37]
    # The scaling pass has the rest of the third block to do; all, where the base model computes prompts in another way.
    assert rows_of("xlora") == [37 if base.executor.separates_prompts else 5, 37]
    assert rows_of("other xlora") == [5, 37]
    assert rows_of("xlora") == [5, 5]
    assert rows_of("base") == [5]
    assert rows_of("lora") == [37]


def test_only_a_scaling_pass_of_the_value_zero_is_the_base_model(registry: AdapterRegistry) -> None:
    lease = registry.lease(XLoraSelection("mixture"))
    lease.release()
    zero = lease.mixture.xlora
    assert zero is not None
    config = dataclasses.replace(zero.classifier.config, scaling_pass_value=0.5)
    half = dataclasses.replace(zero, classifier=dataclasses.replace(zero.classifier, config=config))
    assert zero.scaling_cache_identity(separates_prompts=False) == Mixture().cache_identity == "base"
    apart = zero.scaling_cache_identity(separates_prompts=True)
    of_value = half.scaling_cache_identity(separates_prompts=False)
    assert half.scaling_cache_identity(separates_prompts=True) == of_value
    names = (zero.cache_identity, half.cache_identity, of_value, apart, "base")
    assert len(set(names)) == 5
    assert [zero.bank.digest in name for name in names] == [True, True, True, False, False]


@pytest.fixture
def write_tiny(base: BaseModel, tmp_path_factory: pytest.TempPathFactory) -> AdapterWriter:
    return AdapterWriter(tmp_path_factory.mktemp("more"), base.shape)


def test_a_replaced_adapter_never_uses_what_the_one_of_its_name_computed(
    base: BaseModel, registry: AdapterRegistry, engine: Engine, solo: Solo, write_tiny: AdapterWriter
) -> None:
    versions = [load_lora(lora_folder(write_tiny, f"v{seed}", seed), base.shape, AdapterLimits()) for seed in (8, 9)]
    what = request(Kind(LoraSelection({"changing": 1.0})), SYSTEM_PROMPT)
    seen = []
    for version in (*versions, *versions):
        registry.load("changing", version, source="changing", replace=True)
        reader = Reader(engine, what)
        seen.append((answered(reader.until_the_end()), finished_of(reader).cached_prompt_tokens))
        alone = Solo(base, registry)
        assert seen[-1][0] == alone.answer(what)
        alone.stop()
    registry.unload("changing")
    assert seen[0][0].tokens != seen[1][0].tokens
    # The third and fourth are the first and second again: the same content may use what it computed itself.
    assert [cached for _, cached in seen] == [0, 0, 32, 32]


def test_a_mixture_in_another_order_shares_nothing_but_the_scaling_pass(
    base: BaseModel, registry: AdapterRegistry, engine: Engine, write_tiny: AdapterWriter
) -> None:
    folder = xlora_folder(write_tiny, "ordered", 12)
    what = request(Kind(XLoraSelection("ordered")), SYSTEM_PROMPT, reports=False)
    cached = []
    for order in (EXPERTS, EXPERTS[::-1]):
        registry.load("ordered", load_mixture(folder, base, order), source="ordered", replace=True)
        alone = Solo(base, registry)
        for _ in range(2):
            reader = Reader(engine, what)
            assert answered(reader.until_the_end()) == alone.answer(what)
            cached.append(finished_of(reader).cached_prompt_tokens)
        alone.stop()
    registry.unload("ordered")
    assert cached == [0, 32, 0, 32]


def test_weights_are_part_of_what_computed_a_block(engine: Engine, solo: Solo) -> None:
    for weight in (1.0, 0.5, 0.0):
        what = request(Kind(LoraSelection({"red": weight})), SYSTEM_PROMPT)
        reader = Reader(engine, what)
        assert answered(reader.until_the_end()) == solo.answer(what)
        assert finished_of(reader).cached_prompt_tokens == 0
    # A weight of zero is the base model, and so are its blocks.
    assert finished_of(Reader(engine, request(Kind(BaseSelection()), SYSTEM_PROMPT))).cached_prompt_tokens == 32


def test_the_engine_counts_what_was_found_and_what_lies_in_memory(engine: Engine) -> None:
    for _ in range(2):
        finished_of(Reader(engine, request(Kind(BaseSelection()), SYSTEM_PROMPT, new=3)))
    when_idle(engine)
    usage = engine.kv_cache_usage
    assert (usage.total_tokens, usage.free_tokens, usage.running_requests, usage.waiting_requests) == (4096, 4096, 0, 0)
    assert (usage.prompt_tokens, usage.cached_prompt_tokens, usage.shareable_tokens) == (74, 32, 32)
    assert (usage.evicted_tokens, usage.preemptions) == (0, 0)


def test_without_prefix_caching_every_prompt_is_computed(base: BaseModel, registry: AdapterRegistry) -> None:
    engine = Engine(base, registry, EngineConfig(prefix_caching=False))
    engine.start()
    for _ in range(2):
        assert finished_of(Reader(engine, request(Kind(BaseSelection()), SYSTEM_PROMPT))).cached_prompt_tokens == 0
    when_idle(engine)
    assert engine.pool.num_published == 0
    engine.stop()


def test_the_kinds_of_the_crowd_freeze_settle_and_recompute_as_they_say(solo: Solo) -> None:
    def runs(kind: str) -> list[int]:
        """How many positions in a row have the same scalings, from the last of the prompt on."""
        scalings = solo.answer(request(KINDS[kind], SYSTEM_PROMPT[:20], new=12, reports=True)).scalings[19:]
        return [len(list(group)) for _, group in itertools.groupby(scalings)]

    assert runs("xlora") == [1] * 12
    assert runs("frozen") == [1, 1, 1, 9]
    assert runs("frozen at once") == [12]
    assert runs("recomputed") == [3, 3, 3, 3]
    settled = runs("settled")
    assert settled[:2] == [1, 1]
    assert settled[-1] > 1
