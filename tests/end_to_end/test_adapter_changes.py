"""Answers over gRPC while adapters change under them, as a user, an operator and a follower of orderings cause it.

Some sixty in the whole suite; LORAMUX_STRESS_REQUESTS says how many (`make stress`: 10,000). The engine's own
test beside it, tests/inference_svc/engine/test_stress.py, preempts at every point of a request's life.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import gguf
import pytest

from loramux.client import (
    BASE,
    AdapterChoice,
    AdapterKind,
    AppliedAdapter,
    AsyncClient,
    Client,
    EveryToken,
    FrozenAfter,
    FrozenWhenSettled,
    GenerateOptions,
    Generation,
    Granularity,
    InvalidArgument,
    NotFound,
    RecomputedEvery,
    XLoRA,
    XLoRAOptions,
)
from tests.end_to_end.adapter_changes import GUESTS, Changes, Contents, Mirror
from tests.end_to_end.conftest import inference_alone, services
from tests.inference_svc.adapters.conftest import BASE_ID
from tests.inference_svc.engine.crowd import SYSTEM_PROMPT
from tests.inference_svc.weights.tiny_folder import write_tiny_model
from tests.prometheus import read_metrics

NUM_REQUESTS = int(os.environ.get("LORAMUX_STRESS_REQUESTS", "60"))
MOST_AT_ONCE = 40
# Little room, so that prefixes are evicted, requests preempted, and adapters evicted for others.
FOLLOWING = ("--follow", "--ordering", "styles", "--ordering", "compass@live", "--metrics-port", "0")
CROWDED = ("--kv-cache-tokens", "448", "--context-length", "128", "--max-batch-tokens", "64", "--max-running", "24")
LRU = ("--max-adapters", "16", "--eviction", "lru")
ALONE = ("--no-prefix-caching", "--speculative-tokens", "0", "--max-running", "1", "--context-length", "128")


@dataclass(frozen=True)
class Asked:
    """A request."""

    prompt: tuple[int, ...]
    adapters: AdapterChoice
    options: GenerateOptions


def any_request(shuffle: random.Random) -> Asked:
    """One of some thousands of requests: that many different answers have to be computed alone."""
    granularities: list[Granularity] = [
        EveryToken(),
        FrozenAfter(0),
        FrozenAfter(2),
        RecomputedEvery(3),
        FrozenWhenSettled(0.3, 2),
    ]
    guest = shuffle.choice(GUESTS)
    choices: list[AdapterChoice] = [
        BASE,
        None,
        "red",
        guest,
        {"red": 0.75, "blue": -0.5},
        {guest: 0.5, "blue": 0.0},
        XLoRA("compass"),
        XLoRA("rose"),
    ]
    adapters = shuffle.choice(choices)
    tail = shuffle.randrange(8)
    options = GenerateOptions(max_tokens=tail**2 + 3, ignore_eos=tail % 2 == 0, temperature=0.0)
    if shuffle.random() < 0.5:
        options |= GenerateOptions(temperature=0.9, seed=tail)
    if shuffle.random() < 0.6:
        options["logprobs"] = 2
        options["prompt_logprobs"] = 1
    if isinstance(adapters, XLoRA):
        overridden = XLoRAOptions(shuffle.choice(granularities), top_k_lora=2, softmax_temperature=0.5)
        options["xlora"] = shuffle.choice([XLoRAOptions(shuffle.choice(granularities)), overridden])
    if (isinstance(adapters, XLoRA) or adapters is None) and shuffle.random() < 0.4:
        options["scalings"] = "full"
    return Asked((*SYSTEM_PROMPT[: shuffle.choice([4, 37])], *range(tail, 2 * tail)), adapters, options)


def said(answer: Generation) -> tuple[object, ...]:
    """Everything that must not depend on what else ran: all but names, the number of a request and what was cached."""
    scalings = answer.scalings
    return (
        [(adapter.digest, adapter.weight, adapter.experts) for adapter in answer.adapters],
        (answer.text, answer.tokens, answer.prompt_tokens, answer.finish_reason, answer.seed),
        (answer.usage.prompt_tokens, answer.usage.completion_tokens),
        None if scalings is None else (scalings.first_position, scalings.values.shape, scalings.values.tobytes()),
    )


class Solo:
    """Answers one request at a time with the contents that have given digests, on a service that caches nothing."""

    def __init__(self, client: Client, folders: Sequence[Path]) -> None:
        self._client = client
        self._names = {client.adapters.load(folder.name, str(folder)).digest: folder.name for folder in folders}
        self._brought: dict[str, dict[str, str]] = {}  # the digests of what each revision of an ordering brings
        self._last_applied: dict[str, str] = {}
        self._known: dict[str, tuple[object, ...]] = {}

    @property
    def num_known(self) -> int:
        """How many distinct requests were answered."""
        return len(self._known)

    def answer(self, asked: Asked, applied: Sequence[AppliedAdapter]) -> tuple[object, ...]:
        """The answer with what another one reports to have run with."""
        key = repr((asked.prompt, asked.options, [(each.digest, each.weight) for each in applied]))
        for each in applied:
            if each.ordering is not None:
                assert self._brought_by(each.ordering)[each.name] == each.digest
        if key not in self._known:
            choice = self._choice(applied)
            alone = self._client.generate(asked.prompt, adapters=choice, **asked.options)
            assert alone.usage.cached_prompt_tokens == 0
            self._known[key] = said(alone)
        return self._known[key]

    def _choice(self, applied: Sequence[AppliedAdapter]) -> AdapterChoice:
        if not applied:
            return BASE
        if applied[0].kind is AdapterKind.LORA:
            return {self._names[each.digest]: each.weight or 0.0 for each in applied}
        if applied[0].digest in self._names:
            return XLoRA(self._names[applied[0].digest])
        assert applied[0].ordering is not None
        self._apply(applied[0].ordering)
        return XLoRA(applied[0].name)

    def _brought_by(self, ordering: str) -> dict[str, str]:
        if ordering not in self._brought:
            self._apply(ordering)
        return self._brought[ordering]

    def _apply(self, ordering: str) -> None:
        name = ordering.partition("@")[0]
        if self._last_applied.get(name) != ordering:
            adapters = self._client.apply_ordering(ordering, activate=False).adapters
            self._brought[ordering] = {adapter.name: adapter.digest for adapter in adapters}
            self._last_applied[name] = ordering


class Crowd:
    """Asks until there are enough answers, and until every kind of change has happened among them."""

    def __init__(self, client: AsyncClient, changes: Changes, shuffle: random.Random) -> None:
        self.client, self.changes, self.shuffle = client, changes, shuffle
        self.answers: list[tuple[Asked, Generation]] = []
        self.counts: Counter[str] = Counter()

    async def run(self) -> None:
        async with asyncio.TaskGroup() as changing:
            for _ in range(2):
                changing.create_task(self.changes.run())
            async with asyncio.TaskGroup() as asking:
                for _ in range(MOST_AT_ONCE):
                    asking.create_task(self._ask_on())
            self.changes.is_over = True

    async def _ask_on(self) -> None:
        while len(self.answers) < NUM_REQUESTS or not self.changes.have_all_happened:
            asked = any_request(self.shuffle)
            try:
                if self.shuffle.random() < 0.03:
                    await self._leave(asked)
                else:
                    answer = await self.client.generate(asked.prompt, adapters=asked.adapters, **asked.options)
                    self.answers.append((asked, answer))
            except NotFound:
                self.counts["not found"] += 1
            except InvalidArgument:  # scalings of an active default that has none
                assert asked.adapters is None
                assert "scalings" in asked.options
                self.counts["without scalings"] += 1

    async def _leave(self, asked: Asked) -> None:
        async with self.client.stream(asked.prompt, adapters=asked.adapters, **asked.options) as stream:
            async for _ in stream:
                break
        self.counts["left"] += 1


async def nothing_is_left(client: AsyncClient, metrics: str) -> None:
    """No request, block or lease; every adapter can be unloaded, and then takes no memory."""
    async with asyncio.timeout(60):
        while (usage := (await client.model()).kv_cache).running_requests + usage.waiting_requests:
            await asyncio.sleep(0.02)
    assert usage.free_tokens == usage.total_tokens
    await client.adapters.activate(BASE)
    resident = await client.adapters.list()
    assert [adapter.active_requests for adapter in resident] == [0] * len(resident)
    for adapter in resident:
        await client.adapters.unload(adapter.name, expected_digest=adapter.digest)
    assert await client.adapters.list() == ()
    samples = await asyncio.to_thread(read_metrics, metrics)
    assert {samples["loramux_adapters", (state,)] for state in ("resident", "retired")} == {0}
    assert samples["loramux_adapter_bytes", ()] == 0


async def in_a_crowd(address: str, ordering: str, metrics: str, contents: Contents) -> tuple[Crowd, str]:
    """The answers of a crowd, and a line of figures."""
    async with AsyncClient(address, ordering=ordering, timeout=600) as client:  # on machines of any speed
        mirror = Mirror()
        watching = asyncio.create_task(mirror.watch(client))
        changes = Changes(client, contents, random.Random(5))
        crowd = Crowd(client, changes, random.Random(4))
        began = time.monotonic()
        await crowd.run()
        seconds = time.monotonic() - began
        await changes.until_followed()
        usage, samples = (await client.model()).kv_cache, await asyncio.to_thread(read_metrics, metrics)
        events = {labels[0]: int(value) for (name, labels), value in samples.items() if name.endswith("events_total")}
        await nothing_is_left(client, metrics)
        async with asyncio.timeout(60):
            while mirror.adapters:
                await asyncio.sleep(0.02)
        watching.cancel()
        figures = (
            f"{len(crowd.answers)} answers in {seconds:.0f} s; {dict(crowd.counts)}; changes: {dict(changes.counts)}; "
            f"events: {events}; {usage.preemptions} preemptions, {usage.evicted_tokens} tokens evicted, "
            f"{usage.cached_prompt_tokens} of {usage.prompt_tokens} prompt tokens cached"
        )
        return crowd, figures


@pytest.mark.timeout(7200)
def test_every_answer_is_the_solo_answer_of_the_digests_and_the_ordering_it_reports(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "model", quantization=gguf.GGMLQuantizationType.Q4_0).gguf
    contents = Contents.write(tmp_path / "contents", model)
    root = ("--adapter-root", str(tmp_path / "contents"))
    crowded = tmp_path / "crowded"
    crowded.mkdir()
    with (
        services(model, tmp_path, *root, *ALONE, base_model_id=BASE_ID) as alone,
        Client(alone.inference, ordering=alone.ordering, timeout=600) as client,
    ):
        contents.store(client)
        place = ("--ordering-address", alone.ordering)
        with inference_alone(model, crowded, *root, *place, *FOLLOWING, *CROWDED, *LRU, base_model_id=BASE_ID) as busy:
            assert busy.metrics is not None
            crowd, figures = asyncio.run(in_a_crowd(busy.address, alone.ordering, busy.metrics, contents))
        solo = Solo(client, [*contents.red, *contents.blue, *contents.guests, *contents.roses])
        # In the order of orderings: each is applied once.
        for asked, answer in sorted(crowd.answers, key=lambda pair: [each.ordering or "" for each in pair[1].adapters]):
            assert said(answer) == solo.answer(asked, answer.adapters)
    kinds = Counter(" + ".join(each.kind for each in answer.adapters) or "base" for _, answer in crowd.answers)
    assert kinds.keys() >= {"base", "lora", "lora + lora", "xlora"}
    logging.getLogger(__name__).info("%s; %s distinct; %s", figures, solo.num_known, dict(kinds))
