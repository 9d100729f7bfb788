"""Requests of every kind on a tiny random model, and what each answers when it is alone."""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from inference_svc.adapters.base_model import AdapterLimits
from inference_svc.adapters.classifier import XLoraOverrides
from inference_svc.adapters.lora import load_lora
from inference_svc.adapters.registry import AdapterRegistry
from inference_svc.adapters.selection import (
    BaseSelection,
    LoraSelection,
    Selection,
    XLoraSelection,
)
from inference_svc.adapters.xlora import LoadedXLora, load_xlora
from inference_svc.engine.engine import Engine, EngineConfig
from inference_svc.engine.request import (
    Event,
    Failed,
    Finished,
    FinishReason,
    GenerationRequest,
    Output,
    ResponseOptions,
    Sampling,
    ScalingsDetail,
    Started,
    Stopping,
    TokenLogprobs,
    XLoraOptions,
)
from inference_svc.kv_cache.cache import KVCache
from inference_svc.layers.batch import ForwardBatch
from inference_svc.models.base_model import BaseModel
from inference_svc.scheduling.granularity import FrozenAfter, FrozenWhenSettled, RecomputedEvery
from inference_svc.scheduling.sequence import ScheduledSequence
from tests.inference_svc.adapters.conftest import AdapterWriter
from tests.inference_svc.engine.tiny_engine import Reader

EXPERTS = ("north", "south", "west")


@dataclass(frozen=True)
class Kind:
    """What a request may run with."""

    selection: Selection
    xlora: XLoraOptions = dataclasses.field(default_factory=XLoraOptions)


KINDS: Mapping[str, Kind] = {
    "base": Kind(BaseSelection()),
    "lora": Kind(LoraSelection({"red": 1.0})),
    "other lora": Kind(LoraSelection({"blue": -0.5})),
    "pair": Kind(LoraSelection({"red": 0.75, "blue": 0.5})),
    "xlora": Kind(XLoraSelection("mixture")),
    "other xlora": Kind(XLoraSelection("compass")),
    "valued xlora": Kind(XLoraSelection("valued")),
    "overridden": Kind(XLoraSelection("mixture"), XLoraOptions(None, XLoraOverrides(1, 0.5, 2.0))),
    "frozen": Kind(XLoraSelection("mixture"), XLoraOptions(FrozenAfter(3))),
    "frozen at once": Kind(XLoraSelection("compass"), XLoraOptions(FrozenAfter(0))),
    "settled": Kind(XLoraSelection("mixture"), XLoraOptions(FrozenWhenSettled(0.3, 2), XLoraOverrides(None, 10.0))),
    "recomputed": Kind(XLoraSelection("mixture"), XLoraOptions(RecomputedEvery(3))),
}
SYSTEM_PROMPT = tuple((7 * i + 3) % 25 for i in range(37))  # more than two blocks, less than three


def lora_folder(write: AdapterWriter, name: str, seed: int) -> Path:
    """A LoRA on two modules of each layer."""
    paths = [path for path in write.base.linear_shapes if path.endswith(("q_proj", "down_proj"))]
    return write.lora(name, paths=paths, rank=2, seed=seed)


def xlora_folder(write: AdapterWriter, name: str, seed: int, **config: float) -> tuple[Path, dict[str, int]]:
    """A mixture of three experts on partly different modules, the head among them, and its classifier rows."""
    modules = {
        "north": ("q_proj", "v_proj"),
        "south": ("q_proj", "up_proj", "lm_head"),
        "west": ("v_proj", "down_proj", "lm_head"),
    }
    experts = {
        expert: [path for path in write.base.linear_shapes if path.endswith(ends)] for expert, ends in modules.items()
    }
    layers = {path: row for row, path in enumerate(sorted(set(itertools.chain(*experts.values()))))}
    generator = torch.Generator().manual_seed(seed)
    rows, hidden = len(experts) * len(layers), write.base.hidden_size
    classifier = {
        "last.weight": torch.randn(rows, hidden, generator=generator),
        "last.bias": torch.randn(rows, generator=generator),
    }
    return write.xlora(name, experts, classifier=classifier, without=(), hidden_size=hidden, **config), layers


def load_mixture(folder: tuple[Path, dict[str, int]], base: BaseModel, order: Sequence[str] = EXPERTS) -> LoadedXLora:
    """Load a mixture with its experts in an order."""
    path, layers = folder
    return load_xlora(path, order, layers, base.shape, AdapterLimits())


def tiny_registry(base: BaseModel, folder: Path) -> AdapterRegistry:
    """Two LoRAs and three mixtures of the same experts, under the names that KINDS uses."""
    write = AdapterWriter(folder, base.shape)
    registry = AdapterRegistry(base.shape, AdapterLimits())
    for seed, name in enumerate(("red", "blue")):
        registry.load(name, load_lora(lora_folder(write, name, seed), base.shape, AdapterLimits()), source=name)
    registry.load("mixture", load_mixture(xlora_folder(write, "mixture", 5), base), source="mixture")
    registry.load("compass", load_mixture(xlora_folder(write, "compass", 6, top_k_lora=2), base), source="compass")
    valued = load_mixture(xlora_folder(write, "valued", 7, scaling_pass_value=0.5), base)
    registry.load("valued", valued, source="valued")
    return registry


def request(
    kind: Kind,
    prompt: Sequence[int],
    *,
    new: int = 8,
    temperature: float = 0.0,
    reports: bool = False,
) -> GenerationRequest:
    """A request of a fixed seed; `reports`: with log probabilities, of the prompt too, and the scalings there are."""
    scalings = ScalingsDetail.FULL if isinstance(kind.selection, XLoraSelection) else ScalingsDetail.NONE
    return GenerationRequest(
        "r",
        tuple(prompt),
        kind.selection,
        Sampling(temperature=temperature, seed=11 if temperature else None),
        Stopping(max_tokens=new, ignore_eos=True),
        ResponseOptions(2, 1, scalings) if reports else ResponseOptions(logprobs=1),
        kind.xlora,
    )


@dataclass(frozen=True)
class Answered:
    """Everything that a client sees of an answer, except for what was cached."""

    applied: tuple[tuple[str, float | None], ...]  # digests and weights
    text: str
    tokens: tuple[TokenLogprobs, ...]
    prompt_tokens: tuple[TokenLogprobs, ...]
    scalings: tuple[bytes, ...]  # one for each position from the first on
    reason: FinishReason
    counts: tuple[int, int]


def answered(events: Iterable[Event]) -> Answered:
    """An answer from its events; fails if anything is missing, out of order or there twice."""
    started, *middle, finished = events
    assert isinstance(started, Started)
    assert not isinstance(finished, Failed), finished.error
    assert isinstance(finished, Finished)
    assert started.applied == finished.applied
    outputs = [event for event in middle if isinstance(event, Output)]
    assert len(outputs) == len(middle)
    scalings: list[bytes] = []
    for chunk in itertools.chain(*(output.scalings for output in outputs)):
        assert chunk.first_position == len(scalings), "scalings are missing, or there twice"
        scalings += [row.tobytes() for row in chunk.values]
    tokens = tuple(itertools.chain(*(output.tokens for output in outputs)))
    assert len(tokens) == finished.completion_tokens
    return Answered(
        tuple((adapter.digest, adapter.weight) for adapter in finished.applied),
        "".join(output.text for output in outputs),
        tokens,
        tuple(itertools.chain(*(output.prompt_tokens for output in outputs))),
        tuple(scalings),
        finished.reason,
        (finished.prompt_tokens, finished.completion_tokens),
    )


def finished_of(reader: Reader) -> Finished:
    """The last event of an answer that was read to its end."""
    finished = reader.until_the_end()[-1]
    assert isinstance(finished, Finished)
    return finished


def under_pressure(engine: Engine, *, every: int) -> None:
    """Let the engine preempt its youngest request every so many steps, so at every point of a request's life.

    A small pool does that too, but rarely: nobody is admitted unless all that run can grow by a block.
    """
    scheduler, schedule, steps = engine.scheduler, engine.scheduler.schedule, itertools.count(1)

    def preempt_and_schedule() -> list[ScheduledSequence]:
        if next(steps) % every == 0 and scheduler.num_running > 1:
            scheduler._preempt(scheduler._running[-1])
        return schedule()

    scheduler.schedule = preempt_and_schedule  # type: ignore[method-assign]


def rows_of_passes(engine: Engine) -> list[int]:
    """How many rows each forward pass has; grows as the engine steps."""
    rows: list[int] = []
    hidden_states = engine._runner.executor.hidden_states

    def counted(batch: ForwardBatch, cache: KVCache) -> Tensor:
        rows.append(len(batch.token_ids))
        return hidden_states(batch, cache)

    engine._runner.executor = copy.copy(engine._runner.executor)
    engine._runner.executor.hidden_states = counted  # type: ignore[method-assign]
    return rows


class Solo:
    """Answers requests one at a time and token by token, on an engine that shares nothing between them; each once."""

    def __init__(self, base: BaseModel, registry: AdapterRegistry) -> None:
        self.engine = Engine(
            base, registry, EngineConfig(prefix_caching=False, context_length=128, speculative_tokens=0)
        )
        self.engine.start()
        self._known: dict[object, Answered] = {}

    @property
    def num_known(self) -> int:
        """How many distinct requests were answered."""
        return len(self._known)

    def answer(self, what: GenerationRequest) -> Answered:
        """The answer of a request that nothing runs beside and that finds nothing computed."""
        weights = tuple(what.selection.weights.items()) if isinstance(what.selection, LoraSelection) else what.selection
        key = dataclasses.replace(what, selection=BaseSelection()), weights
        if key not in self._known:
            reader = Reader(self.engine, what)
            self._known[key] = answered(reader.until_the_end())
            assert finished_of(reader).cached_prompt_tokens == 0
        return self._known[key]

    def stop(self) -> None:
        """End the engine; nothing may be left over."""
        self.engine.stop()
        self.engine.check_integrity()
