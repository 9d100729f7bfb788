"""Requests of every kind while adapters are replaced, unloaded, re-ordered and activated under them.

A hundred and fifty in the whole suite; LORAMUX_STRESS_REQUESTS says how many (`make stress`: 10,000).
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import logging
import os
import random
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator

import pytest

from inference_svc.adapters.base_model import AdapterLimits
from inference_svc.adapters.classifier import XLoraOverrides
from inference_svc.adapters.loading import Loaded
from inference_svc.adapters.lora import load_lora
from inference_svc.adapters.registry import AdapterRegistry
from inference_svc.adapters.resident import LoadItem
from inference_svc.adapters.selection import (
    ActiveSelection,
    AdapterKind,
    AppliedAdapter,
    BaseSelection,
    LoraSelection,
    Selection,
    XLoraSelection,
)
from inference_svc.engine.engine import Engine, EngineConfig
from inference_svc.engine.request import (
    Finished,
    GenerationRequest,
    ResponseOptions,
    Sampling,
    ScalingsDetail,
    Stopping,
    XLoraOptions,
)
from inference_svc.errors import AdapterInUse, AdapterNotFound, InvalidRequest
from inference_svc.models.base_model import BaseModel
from inference_svc.scheduling.granularity import FrozenAfter, FrozenWhenSettled, Granularity, RecomputedEvery
from tests.inference_svc.adapters.conftest import AdapterWriter
from tests.inference_svc.engine.crowd import (
    EXPERTS,
    SYSTEM_PROMPT,
    Answered,
    Kind,
    Solo,
    answered,
    load_mixture,
    lora_folder,
    under_pressure,
    xlora_folder,
)
from tests.inference_svc.engine.tiny_engine import Reader, when_idle

NUM_REQUESTS = int(os.environ.get("LORAMUX_STRESS_REQUESTS", "150"))
MOST_AT_ONCE = 40
LIMITS = AdapterLimits(max_adapters=10_000)


@dataclasses.dataclass(frozen=True)
class Versions:
    """What each name may come to stand for: contents of a LoRA, orders of a mixture's experts."""

    loras: dict[str, list[Loaded]]
    mixtures: dict[str, list[Loaded]]

    def __iter__(self) -> Iterator[Loaded]:
        return itertools.chain(*self.loras.values(), *self.mixtures.values())


@pytest.fixture(scope="module")
def versions(base: BaseModel, tmp_path_factory: pytest.TempPathFactory) -> Versions:
    write = AdapterWriter(tmp_path_factory.mktemp("adapters"), base.shape)

    def loras(name: str, first_seed: int) -> list[Loaded]:
        seeds = range(first_seed, first_seed + 3)
        return [load_lora(lora_folder(write, f"{name}-{seed}", seed), base.shape, LIMITS) for seed in seeds]

    orders = list(itertools.permutations(EXPERTS))
    compass, rose = xlora_folder(write, "compass", 5), xlora_folder(write, "rose", 6, top_k_lora=2)
    return Versions(
        {"red": loras("red", 0), "blue": loras("blue", 3)},
        {
            "compass": [load_mixture(compass, base, order) for order in orders],
            "rose": [load_mixture(rose, base, order) for order in orders[:3]],
        },
    )


class Changes:
    """Changes the adapters in a thread of its own, at random, until it is stopped."""

    def __init__(self, registry: AdapterRegistry, versions: Versions, shuffle: random.Random) -> None:
        self.registry, self.versions, self.shuffle = registry, versions, shuffle
        self.counts: Counter[str] = Counter()
        self._failures: list[Exception] = []
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run)
        for name, choices in {**versions.loras, **versions.mixtures}.items():
            registry.load(name, choices[0], source=name)

    def __enter__(self) -> Changes:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stopping.set()
        self._thread.join()
        assert not self._failures

    def _run(self) -> None:
        while not self._stopping.wait(0.002):
            change = self.shuffle.choice([self.replace, self.unload, self.reorder, self.activate])
            try:
                # Refused as documented: what is in the active default stays, what is gone is not found.
                with contextlib.suppress(AdapterInUse, AdapterNotFound):
                    change()
                    self.counts[change.__name__] += 1
            except Exception as error:
                self._failures.append(error)
                return

    def replace(self) -> None:
        name = self.shuffle.choice(list(self.versions.loras))
        self.registry.load(name, self.shuffle.choice(self.versions.loras[name]), source=name, replace=True)

    def unload(self) -> None:
        names = [*self.versions.loras, *self.versions.mixtures]
        name = self.shuffle.choice(names)
        self.registry.unload(name)
        self._stopping.wait(0.001)
        choices = (self.versions.loras | self.versions.mixtures)[name]
        self.registry.load(name, self.shuffle.choice(choices), source=name)

    def reorder(self) -> None:
        name = self.shuffle.choice(list(self.versions.mixtures))
        self.registry.load(name, self.shuffle.choice(self.versions.mixtures[name]), source=name, replace=True)

    def activate(self) -> None:
        ordered = LoadItem("ordered", self.shuffle.choice(self.versions.mixtures["compass"]), "ordered")
        choices: list[Selection] = [BaseSelection(), XLoraSelection("rose"), XLoraSelection("ordered")]
        what = self.shuffle.choice(choices)
        if isinstance(what, XLoraSelection) and what.name == "ordered":
            revision = f"orderings/compass@{self.shuffle.randrange(9)}"
            self.registry.load_all([ordered], ordering=revision, activate=what)
        else:
            self.registry.activate(what)


def any_request(shuffle: random.Random) -> GenerationRequest:
    """One of some thousands of requests: that many different answers have to be computed alone."""
    sparing: list[Granularity] = [FrozenAfter(0), FrozenAfter(2), RecomputedEvery(3)]
    settled = XLoraOptions(FrozenWhenSettled(0.3, 2), XLoraOverrides(None, 10.0))
    kinds = [
        Kind(BaseSelection()),
        Kind(ActiveSelection()),
        Kind(LoraSelection({shuffle.choice(["red", "blue"]): 1.0})),
        Kind(LoraSelection({"red": 0.75, "blue": -0.5})),
        Kind(XLoraSelection("compass")),
        Kind(XLoraSelection("rose"), settled),
        Kind(XLoraSelection(shuffle.choice(["compass", "rose"])), XLoraOptions(shuffle.choice(sparing))),
    ]
    tail = shuffle.randrange(8)
    prompt = (*SYSTEM_PROMPT[: shuffle.choice([4, 37])], *range(tail, 2 * tail))
    kind = shuffle.choice(kinds)
    may_have_scalings = isinstance(kind.selection, XLoraSelection | ActiveSelection)
    scalings = ScalingsDetail.FULL if may_have_scalings else ScalingsDetail.NONE
    responses = [ResponseOptions(), ResponseOptions(logprobs=1), ResponseOptions(1, 1, scalings)]
    temperature = shuffle.choice([0.0, 0.9])
    return GenerationRequest(
        "r",
        prompt,
        kind.selection,
        Sampling(temperature=temperature, seed=tail if temperature else None),
        Stopping(max_tokens=tail**2 + 3, ignore_eos=tail % 2 == 0),
        shuffle.choices(responses, [2, 2, 1])[0],
        kind.xlora,
    )


def chosen_by_digest(applied: tuple[AppliedAdapter, ...]) -> Selection:
    """What an answer says that it ran with, from a registry whose names are digests."""
    if not applied:
        return BaseSelection()
    if applied[0].kind is AdapterKind.XLORA:
        return XLoraSelection(applied[0].digest)
    return LoraSelection({adapter.digest: adapter.weight or 0.0 for adapter in applied})


@pytest.mark.timeout(7200)
def test_every_answer_is_the_solo_answer_of_the_digests_it_reports(base: BaseModel, versions: Versions) -> None:
    registry = AdapterRegistry(base.shape, LIMITS)
    # Answers are read one after the other, on machines of any speed.
    config = EngineConfig(
        max_batch_tokens=64, max_running=24, kv_cache_tokens=28 * 16, context_length=128, slow_reader_seconds=600
    )
    engine = Engine(base, registry, config)
    under_pressure(engine, every=10)
    engine.start()
    shuffle = random.Random(4)
    open_ones: deque[tuple[GenerationRequest, Reader]] = deque()
    answers: list[tuple[GenerationRequest, Answered]] = []
    counts: Counter[str] = Counter()
    began = time.monotonic()
    with Changes(registry, versions, random.Random(5)) as changes:
        while len(answers) < NUM_REQUESTS:
            while len(open_ones) < MOST_AT_ONCE:
                what = any_request(shuffle)
                try:
                    open_ones.append((what, Reader(engine, what)))
                except AdapterNotFound:
                    counts["not found"] += 1
                except InvalidRequest:  # scalings of an active default that has none
                    assert isinstance(what.selection, ActiveSelection)
                    counts["without scalings"] += 1
            what, reader = open_ones.popleft()
            if shuffle.random() < 0.02:
                reader.stream.cancel()
                counts["cancelled"] += 1
                continue
            events = reader.until_the_end()
            finished = events[-1]
            assert isinstance(finished, Finished)
            by_digest = dataclasses.replace(what, selection=chosen_by_digest(finished.applied))
            answers.append((by_digest, answered(events)))
        for _, reader in open_ones:
            reader.stream.cancel()
        when_idle(engine)  # no request and no block is left over
    counts["seconds"] = round(time.monotonic() - began)
    engine.stop()
    assert registry.retired_versions == 0
    assert [adapter.active_requests for adapter in registry.list_all()] == [0] * len(registry.list_all())
    happened = engine.scheduler.counters
    assert min(happened.cached_prompt_tokens, happened.preemptions, engine.pool.num_evictions) > 0

    by_digest_alone = AdapterRegistry(base.shape, LIMITS)
    for loaded in versions:
        by_digest_alone.load(loaded.digest, loaded, source="the same")
    solo = Solo(base, by_digest_alone)
    for what, answer in answers:
        assert answer == solo.answer(what)
    solo.stop()
    logging.getLogger(__name__).info(
        "%s answers, %s distinct; %s; changes: %s; %s; %s blocks evicted",
        len(answers),
        solo.num_known,
        dict(counts),
        dict(changes.counts),
        happened,
        engine.pool.num_evictions,
    )
