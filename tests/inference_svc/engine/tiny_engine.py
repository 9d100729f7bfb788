"""A tiny random model that the engine can serve, and readers for its answers."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGMLQuantizationType
from torch import Tensor

from inference_svc.adapters.bank import AdapterBank
from inference_svc.adapters.base_model import BaseModelShape
from inference_svc.engine.engine import BLOCK_SIZE, Engine, make_cache
from inference_svc.engine.output_stream import OutputStream
from inference_svc.engine.request import Event, Failed, Finished, GenerationRequest, Output
from inference_svc.kernels.native.compiler import NativeUnavailable
from inference_svc.kernels.native.executor import NativeExecutor
from inference_svc.kernels.reference import ReferenceKernels
from inference_svc.kv_cache.cache import KVCache
from inference_svc.layers.batch import AdapterRows, ForwardBatch
from inference_svc.layers.eager import EagerExecutor
from inference_svc.layers.executor import Executor
from inference_svc.models.architectures import linear_shapes
from inference_svc.models.base_model import BaseModel, define
from inference_svc.models.checkpoint import Checkpoint
from inference_svc.models.definition import ModelDefinition
from inference_svc.models.loading import load_checkpoint
from inference_svc.weights.gguf import GgufFile
from tests.inference_svc.weights.tiny_llama import write_tiny_llama_gguf

CPU = torch.device("cpu")


class Letters:
    """A tokenizer whose token i is the letter a + i; z ends the text."""

    eos_token_ids = frozenset({25})
    strips_leading_space = False

    def token_bytes(self, token_id: int) -> bytes:
        return bytes([97 + token_id % 26])

    def is_special(self, token_id: int) -> bool:
        return token_id in self.eos_token_ids


def tiny_base_model(
    folder: Path, *, hidden: int = 64, heads: int = 4, ffn: int = 128, original_length: int | None = None
) -> BaseModel:
    """Two layers and 32 tokens, in batch-invariant mode; the file goes into the folder."""
    checkpoint = _tiny_checkpoint(folder, hidden=hidden, heads=heads, ffn=ffn, original_length=original_length)
    return _base_model(checkpoint, _eager(checkpoint))


class SharedNative(NativeExecutor):
    """One that several engines run on, as in no service: a program has a single working memory."""

    def __init__(self, model: ModelDefinition, *, num_threads: int, exact: bool, batch_invariant: bool) -> None:
        super().__init__(model, num_threads=num_threads, exact=exact, batch_invariant=batch_invariant)
        self._lock = threading.Lock()

    def hidden_states(self, batch: ForwardBatch, cache: KVCache) -> Tensor:
        with self._lock:
            return super().hidden_states(batch, cache)

    def logits(self, hidden: Tensor, adapters: tuple[AdapterRows, ...]) -> Tensor:
        with self._lock:
            return super().logits(hidden, adapters)


def native_base_model(folder: Path, *, batch_invariant: bool = True, original_length: int | None = None) -> BaseModel:
    """A model as tiny, on the native executor, with products and attention that matrix tiles can compute.

    Skips the test where there is none.
    """
    quantization = GGMLQuantizationType.Q8_0
    checkpoint = _tiny_checkpoint(
        folder, hidden=64, heads=2, ffn=96, original_length=original_length, quantization=quantization
    )
    try:
        executor = SharedNative(define(checkpoint), num_threads=2, exact=False, batch_invariant=batch_invariant)
    except NativeUnavailable as error:
        pytest.skip(str(error))
    return _base_model(checkpoint, executor)


class TwoModels:
    """An executor whose prompts are computed by another model than all else: whoever mixes them up will see it."""

    name = "two models"
    batch_invariant = True
    separates_prompts = True
    dtype = cache_dtype = torch.float32

    def __init__(self, of_prompts: EagerExecutor, of_others: EagerExecutor) -> None:
        self._of_prompts = of_prompts
        self._of_others = of_others

    def prepare(self, bank: AdapterBank) -> AdapterBank:
        return bank

    def hidden_states(self, batch: ForwardBatch, cache: KVCache) -> Tensor:
        assert not (batch.is_of_prompts and batch.has_scaling_pass)
        return (self._of_prompts if batch.is_of_prompts else self._of_others).hidden_states(batch, cache)

    def logits(self, hidden: Tensor, adapters: tuple[AdapterRows, ...]) -> Tensor:
        return self._of_others.logits(hidden, adapters)


def separating_base_model(folder: Path, *, original_length: int | None = None) -> BaseModel:
    """Two tiny models as one; see `TwoModels`."""
    checkpoints = [
        _tiny_checkpoint(folder, hidden=32, heads=4, ffn=48, original_length=original_length, seed=seed)
        for seed in range(2)
    ]
    return _base_model(checkpoints[1], TwoModels(*map(_eager, checkpoints)))


# Prompts are computed as all else is, in another arithmetic, or by another model.
MODELS: Mapping[str, Callable[..., BaseModel]] = {
    "reference": partial(tiny_base_model, hidden=32, heads=4, ffn=48),
    "native": native_base_model,
    "two models": separating_base_model,
}


def _tiny_checkpoint(folder: Path, *, seed: int = 0, **shape: Any) -> Checkpoint:
    path = folder / f"tiny-{seed}.gguf"
    write_tiny_llama_gguf(path, vocab=32, seed=seed, **shape)
    return load_checkpoint(GgufFile.open(path))


def _eager(checkpoint: Checkpoint) -> EagerExecutor:
    return EagerExecutor(define(checkpoint), ReferenceKernels(batch_invariant=True), torch.float32)


def _base_model(checkpoint: Checkpoint, executor: Executor) -> BaseModel:
    config = checkpoint.config
    shape = BaseModelShape("llama", "", config.hidden_size, linear_shapes(config), True, CPU)
    return BaseModel(executor, config, Letters(), shape, CPU, "Q8_0", checkpoint.nbytes, "")  # type: ignore[arg-type]


def own_cache(base: BaseModel, num_tokens: int) -> KVCache:
    """A cache with room for so many tokens, for a pass that no engine runs."""
    blocks = -(-num_tokens // BLOCK_SIZE)
    return make_cache(base.config, blocks * BLOCK_SIZE, torch.float32, base.device, hidden_dtype=torch.float32)


class Reader:
    """Submits a request and collects its events."""

    def __init__(self, engine: Engine, what: GenerationRequest) -> None:
        self.ready = threading.Event()
        self.stream: OutputStream = engine.submit(what, self.ready.set)
        self.events: list[Event] = []

    def until_the_end(self) -> list[Event]:
        deadline = time.monotonic() + 60
        while not (self.events and isinstance(self.events[-1], Finished | Failed)):
            assert time.monotonic() < deadline, self.events
            self.ready.wait(0.05)
            self.ready.clear()
            self.events += self.stream.take()
        return self.events

    @property
    def text(self) -> str:
        return "".join(event.text for event in self.events if isinstance(event, Output))


def when_idle(engine: Engine) -> None:
    """Wait until nothing runs, then check that nothing is left over."""
    deadline = time.monotonic() + 60
    while engine.num_unfinished:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    engine.check_integrity()
