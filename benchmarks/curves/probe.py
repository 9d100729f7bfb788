"""Times decode steps of the engine in this process: the server around it would add only noise."""

from __future__ import annotations

import itertools
import random
import statistics
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

from inference_svc.adapters.bank import AdapterBank, LinearDelta
from inference_svc.adapters.base_model import AdapterLimits
from inference_svc.adapters.lora import LoadedLora, load_lora
from inference_svc.adapters.registry import AdapterRegistry
from inference_svc.adapters.selection import Selection
from inference_svc.adapters.xlora import load_xlora
from inference_svc.engine.engine import Engine, EngineConfig
from inference_svc.engine.output_stream import OutputStream
from inference_svc.engine.request import (
    Failed,
    Finished,
    GenerationRequest,
    Output,
    ResponseOptions,
    Sampling,
    Stopping,
    XLoraOptions,
)
from inference_svc.models.base_model import BaseModel, open_base_model

KV_CACHE_TOKENS = 72 * 1024
ANSWER_SECONDS = 600.0
MANY_BYTES = 64 << 30


@dataclass(slots=True)
class Listener:
    """Notes the moment of every token of a stream, in the engine's thread."""

    stream: OutputStream | None = None
    moments: list[tuple[float, int]] = field(default_factory=list)  # (seconds, tokens so far)
    done: threading.Event = field(default_factory=threading.Event)

    def on_ready(self) -> None:
        """What the engine calls."""
        if self.stream is None:  # the very first event comes before `submit` returns
            return
        for event in self.stream.take():
            if isinstance(event, Output):
                total = (self.moments[-1][1] if self.moments else 0) + len(event.tokens)
                self.moments.append((time.perf_counter(), total))
            elif isinstance(event, Finished | Failed):
                if isinstance(event, Failed):
                    self.moments.clear()
                self.done.set()


class Probe:
    """An engine with the adapters that it is given."""

    def __init__(self, model: Path, kernels: str) -> None:
        self.base: BaseModel = open_base_model(
            str(model), base_model_id=None, device="cpu", kernels=kernels, batch_invariant=False
        ).load()
        self._names, self._numbers = itertools.count(), itertools.count(1_000_000)
        self._computed: list[tuple[tuple[int, ...], Selection]] = []
        self._limits = AdapterLimits(max_adapters=2048, max_rank=1024, max_bytes=MANY_BYTES)
        self.registry = AdapterRegistry(self.base.shape, self._limits, self.base.executor.prepare)
        # A token of each stream a step: drafts would make steps of other widths than a curve says.
        config = EngineConfig(kv_cache_tokens=KV_CACHE_TOKENS, speculative_tokens=0)
        self._engine = Engine(self.base, self.registry, config)
        self._engine.start()

    def close(self) -> None:
        """End the engine's thread."""
        self._engine.stop()

    def load_loras(self, folder: Path, count: int) -> list[str]:
        """Make so many adapters of one folder's weights resident, each with memory of its own; returns their names."""
        loaded = load_lora(folder, self.base.shape, self._limits)
        names = [f"a{next(self._names)}" for _ in range(count)]
        for number, name in enumerate(names):
            self.registry.load(name, _copy(loaded, f"{number:08x}"), source=str(folder))
        return names

    def load_xlora(self, folder: Path, order: Sequence[str], layers: dict[str, int]) -> tuple[str, int]:
        """Make a mixture resident; returns its name and the bytes of its adapters."""
        loaded = load_xlora(folder, order, layers, self.base.shape, self._limits)
        name = f"x{next(self._names)}"
        self.registry.load(name, loaded, source=str(folder))
        return name, loaded.bank.nbytes

    def step_seconds(
        self, selections: Sequence[Selection], context: int, steps: int, xlora: XLoraOptions | None = None
    ) -> float:
        """Median seconds of a step in which one stream for each selection decodes, `context` tokens in."""
        prompts = [self._prompt(number, context) for number in range(len(selections))]
        # Prompts are computed before, and found again: streams whose prompts are not would decode one after the other.
        for prompt, selection in zip(prompts, selections, strict=True):
            if (prompt, selection) not in self._computed:
                self._answers([self._submit(selection, prompt, 1, xlora)])
                self._computed.append((prompt, selection))
        new_tokens = steps + 8 + len(selections) // 2
        listeners = self._answers(
            [self._submit(*pair, new_tokens, xlora) for pair in zip(selections, prompts, strict=True)]
        )
        began = max(listener.moments[0][0] for listener in listeners)
        ended = min(listener.moments[-1][0] for listener in listeners)
        within = [moment for moment in listeners[0].moments if began <= moment[0] <= ended]
        times = [(later - earlier) / (after - before) for (earlier, before), (later, after) in pairwise(within)]
        if len(times) < steps // 2:
            raise RuntimeError(f"all streams decoded together for {len(times)} steps only, of {steps}")
        return statistics.median(times[-steps:])

    def prefill_seconds(self, selection: Selection, tokens: int) -> float:
        """Seconds until the first token of a prompt that was never computed."""
        prompt = self._prompt(next(self._numbers), tokens)
        began = time.perf_counter()
        (listener,) = self._answers([self._submit(selection, prompt, 1, None)])
        return listener.moments[0][0] - began

    def _prompt(self, number: int, tokens: int) -> tuple[int, ...]:
        chance = random.Random(number)
        return tuple(chance.randrange(100, self.base.config.vocab_size) for _ in range(tokens))

    def _answers(self, listeners: Sequence[Listener]) -> Sequence[Listener]:
        """The same, once all have ended."""
        for listener in listeners:
            if not listener.done.wait(ANSWER_SECONDS) or not listener.moments:
                raise RuntimeError("the engine did not answer: nothing was measured")
        return listeners

    def _submit(
        self, selection: Selection, prompt: tuple[int, ...], new_tokens: int, xlora: XLoraOptions | None
    ) -> Listener:
        request = GenerationRequest(
            "probe",
            prompt,
            selection,
            Sampling(temperature=0.0),
            Stopping(max_tokens=new_tokens, ignore_eos=True),
            ResponseOptions(),
            xlora or XLoraOptions(),
        )
        listener = Listener()
        listener.stream = self._engine.submit(request, listener.on_ready)
        listener.on_ready()  # what came before the stream was known
        return listener


def _copy(loaded: LoadedLora, mark: str) -> LoadedLora:
    """The same adapter again, as another one: memory and digest are its own."""
    bank = loaded.bank
    deltas = {path: LinearDelta(d.a.clone(), d.b.clone(), d.expert_of_rank.clone()) for path, d in bank.deltas.items()}
    digest = mark + loaded.digest[len(mark) :]
    return replace(loaded, bank=AdapterBank(digest, bank.experts, deltas, bank.scaling_rows), digest=digest)
