"""LongRoPE: a sequence that outgrows its original length goes on as the whole text so far asks for, to the bit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from inference_svc.adapters.registry import AdapterRegistry
from inference_svc.engine.engine import BLOCK_SIZE, Engine, EngineConfig
from inference_svc.engine.model_runner import ModelRunner, RowRequest
from inference_svc.kv_cache.blocks import BlockPool
from inference_svc.models.base_model import BaseModel
from inference_svc.scheduling.sequence import ScheduledSequence, Sequence
from tests.inference_svc.engine.crowd import (
    KINDS,
    SYSTEM_PROMPT,
    Solo,
    answered,
    request,
    under_pressure,
)
from tests.inference_svc.engine.tiny_engine import MODELS, Reader, own_cache, when_idle

ORIGINAL_LENGTH = 44
NEW = 8
# One stays short, one reaches the length exactly, one passes it with its first new token, one on the way, one is long.
LENGTHS = (30, ORIGINAL_LENGTH - NEW, ORIGINAL_LENGTH, ORIGINAL_LENGTH - 3, ORIGINAL_LENGTH + 5)


def prompt(length: int) -> tuple[int, ...]:
    return (SYSTEM_PROMPT * 2)[:length]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> BaseModel:
    make = MODELS[getattr(request, "param", "reference")]
    return make(tmp_path_factory.mktemp("model"), original_length=ORIGINAL_LENGTH)


on_every_model = pytest.mark.parametrize("base", MODELS, indirect=True, scope="module")


def last_logits(
    base: BaseModel, registry: AdapterRegistry, kind: str, token_ids: list[int], switch_length: int | None
) -> Tensor:
    """From one pass over the whole text on a cache of its own."""
    cache = own_cache(base, 2 * (len(token_ids) + BLOCK_SIZE - 1))
    runner = ModelRunner(base.executor, cache, base.device)
    lease = registry.lease(KINDS[kind].selection)
    mixture = KINDS[kind].xlora.applied_to(lease.mixture)
    lease.release()
    sequence = Sequence(
        "whole", token_ids, len(token_ids), len(token_ids), mixture.xlora is not None, switch_length=switch_length
    )
    if sequence.must_switch:
        sequence.switch()
    pool = BlockPool(cache.storage[0].shape[1], BLOCK_SIZE)
    sequence.blocks.grow(pool, len(token_ids))
    sequence.scaling_blocks.grow(pool, len(token_ids) if mixture.xlora is not None else 0)
    scheduled = ScheduledSequence(sequence, len(token_ids), sequence.num_scaling_rows(len(token_ids)))
    logits = runner.run([RowRequest(scheduled, mixture, False)])[0].logits
    assert logits is not None
    return torch.from_numpy(logits[-1])


@pytest.mark.parametrize("kind", ["base", "lora", "xlora", "valued xlora"])
def test_every_token_is_the_one_that_the_whole_text_so_far_asks_for(
    base: BaseModel, registry: AdapterRegistry, solo: Solo, kind: str
) -> None:
    for length in LENGTHS:
        token_ids = list(prompt(length))
        for token in solo.answer(request(KINDS[kind], token_ids, new=NEW)).tokens:
            logits = last_logits(base, registry, kind, token_ids, ORIGINAL_LENGTH)
            assert token.token_id == int(logits.argmax()), (length, len(token_ids))
            token_ids.append(token.token_id)


def test_the_factors_of_long_sequences_really_matter(base: BaseModel, registry: AdapterRegistry) -> None:
    assert base.config.rope.switch_length == ORIGINAL_LENGTH
    for length, differs in ((ORIGINAL_LENGTH, False), (ORIGINAL_LENGTH + 1, True)):
        text = list(prompt(length))
        long, short = (last_logits(base, registry, "base", text, switch) for switch in (ORIGINAL_LENGTH, None))
        assert (float((long - short).abs().max()) > 0.01) is differs


@on_every_model
@pytest.mark.parametrize("every", [0, 5])
def test_answers_in_a_crowd_from_a_warm_cache_and_through_preemption_are_those_alone(
    base: BaseModel, registry: AdapterRegistry, solo: Solo, every: int
) -> None:
    config = EngineConfig(
        max_batch_tokens=48,
        kv_cache_tokens=2048,
        slow_reader_seconds=300,  # one answer is read after the other, on machines of any speed
    )
    engine = Engine(base, registry, config)
    if every:
        under_pressure(engine, every=every)
    engine.start()
    crowd = [
        request(kind, prompt(LENGTHS[index % len(LENGTHS)]), new=NEW, reports=index % 2 == 0)
        for index, kind in enumerate([*KINDS.values(), *KINDS.values()])
    ]
    for _ in range(2):
        readers = [Reader(engine, what) for what in crowd]
        for what, reader in zip(crowd, readers, strict=True):
            assert answered(reader.until_the_end()) == solo.answer(what)
    when_idle(engine)
    engine.stop()


@on_every_model
def test_a_pool_that_holds_one_such_request_ends_them_all(
    base: BaseModel, registry: AdapterRegistry, solo: Solo
) -> None:
    needed = 2 * -(-(ORIGINAL_LENGTH + 5 + NEW) // BLOCK_SIZE) * BLOCK_SIZE
    engine = Engine(base, registry, EngineConfig(max_batch_tokens=48, kv_cache_tokens=needed))
    engine.start()
    crowd = [request(KINDS[kind], prompt(length), new=NEW) for length in LENGTHS for kind in ("xlora", "base", "lora")]
    readers = [Reader(engine, what) for what in crowd]
    for what, reader in zip(crowd, readers, strict=True):
        assert answered(reader.until_the_end()) == solo.answer(what)
    when_idle(engine)
    engine.stop()
