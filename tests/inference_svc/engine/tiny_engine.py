"""A tiny random model that the engine can serve, and readers for its answers."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import torch

from inference_svc.adapters.base_model import BaseModelShape
from inference_svc.engine.engine import BLOCK_SIZE, Engine, make_cache
from inference_svc.engine.output_stream import OutputStream
from inference_svc.engine.request import Event, Failed, Finished, GenerationRequest, Output
from inference_svc.kernels.reference import ReferenceKernels
from inference_svc.kv_cache.cache import KVCache
from inference_svc.layers.eager import EagerExecutor
from inference_svc.models.architectures import linear_shapes
from inference_svc.models.base_model import BaseModel, define
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
    path = folder / "tiny.gguf"
    write_tiny_llama_gguf(path, hidden=hidden, heads=heads, ffn=ffn, vocab=32, original_length=original_length)
    checkpoint = load_checkpoint(GgufFile.open(path))
    executor = EagerExecutor(define(checkpoint), ReferenceKernels(batch_invariant=True), torch.float32)
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
