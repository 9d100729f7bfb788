"""Hand-written stand-ins for the engine, the tokenizer, the adapters and the ordering service."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from inference_svc.adapters.ordering import AppliedOrdering
from inference_svc.adapters.residency import ResidencyLog, ResidencySnapshot, ResidencyWatch
from inference_svc.adapters.resident import ActiveSet, ResidentAdapter
from inference_svc.adapters.selection import AdapterKind, BaseSelection, Selection
from inference_svc.engine.request import (
    Event,
    Failed,
    Finished,
    FinishReason,
    GenerationRequest,
    KVCacheUsage,
    Output,
    Started,
    TokenLogprobs,
)
from inference_svc.errors import AdapterNotFound, Draining, InferenceError
from inference_svc.rpc.ports import ChatTurn
from inference_svc.tokenization.errors import ChatTemplateError

VOCAB_SIZE = 300


@dataclass(frozen=True, slots=True)
class FakeDescription:
    """A model that is not there."""

    base_model_id: str = "org/fake"
    architecture: str = "llama"
    quantization: str = "Q4_1"
    vocab_size: int = VOCAB_SIZE
    num_layers: int = 2
    weight_bytes: int = 12345
    device: str = "cpu"
    kernels: str = "reference"
    batch_invariant: bool = True
    adapter_modules: tuple[str, ...] = ("q_proj", "v_proj")


class FakeTokenizer:
    """One id a byte of UTF-8."""

    vocab_size = VOCAB_SIZE

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def render_chat(self, turns: Sequence[ChatTurn]) -> str:
        for turn in turns:
            if turn.role == "tool":
                raise ChatTemplateError("the chat template knows no role 'tool'")
        return "".join(f"<{turn.role}>{turn.content}" for turn in turns)

    def encode_chat(self, turns: Sequence[ChatTurn]) -> list[int]:
        return self.encode(self.render_chat(turns))

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        kept = [token_id for token_id in token_ids if token_id < 256]
        return bytes(kept).decode("utf-8", "replace")


class FakeStream:
    """A stream that a test fills."""

    def __init__(self, request: GenerationRequest, on_ready: Callable[[], None]) -> None:
        self.request = request
        self.num_cancels = 0
        self.cancelled = threading.Event()
        self.num_takes = 0
        self.is_open = True
        self._on_ready = on_ready
        self._lock = threading.Lock()
        self._pending: list[Event] = []

    def emit(self, *events: Event) -> None:
        with self._lock:
            for event in events:
                if isinstance(event, Output) and self._pending and isinstance(self._pending[-1], Output):
                    self._pending[-1] = self._pending[-1].joined_with(event)
                else:
                    self._pending.append(event)
                self.is_open = self.is_open and not isinstance(event, Finished | Failed)
        self._on_ready()

    def take(self) -> list[Event]:
        with self._lock:
            self.num_takes += 1
            taken, self._pending = self._pending, []
        return taken

    def cancel(self) -> None:
        self.num_cancels += 1
        self.is_open = False
        self.cancelled.set()

    def start(self) -> None:
        self.emit(Started(self.request.request_id, len(self.request.prompt_token_ids), (), None))

    def say(self, text: str) -> None:
        self.emit(Output(text, tuple(TokenLogprobs(byte) for byte in text.encode())))

    def finish(self, num_tokens: int = 0) -> None:
        self.emit(Finished(FinishReason.EOS, None, len(self.request.prompt_token_ids), num_tokens, ()))


def answer_at_once(stream: FakeStream) -> None:
    """Say `hi` and finish."""
    stream.start()
    stream.say("hi")
    stream.finish(2)


class FakeEngine:
    """Accepts every request and lets `on_submit` answer it."""

    context_length = 128
    kv_cache_usage = KVCacheUsage(1024, 512, 256, 3, 2, 1000, 400, 48, 1)

    def __init__(self, on_submit: Callable[[FakeStream], None] = answer_at_once) -> None:
        self.is_healthy = True
        self.on_submit = on_submit
        self.refusal: Exception | None = None
        self.streams: list[FakeStream] = []
        self.is_draining = False
        self.num_stops = 0
        self._drain_over = threading.Event()

    def submit(self, request: GenerationRequest, on_ready: Callable[[], None]) -> FakeStream:
        if self.is_draining:
            raise Draining("the service is shutting down")
        if self.refusal is not None:
            raise self.refusal
        stream = FakeStream(request, on_ready)
        self.streams.append(stream)
        self.on_submit(stream)
        return stream

    def drain(self, timeout_seconds: float) -> bool:
        self.is_draining = True
        pause = threading.Event()
        waited = 0.0
        while any(stream.is_open for stream in self.streams) and waited < timeout_seconds:
            pause.wait(0.01)
            waited += 0.01
        return not any(stream.is_open for stream in self.streams)

    def stop(self) -> None:
        self.num_stops += 1
        self.is_draining = True
        for stream in self.streams:
            if stream.is_open:
                stream.emit(Failed(Draining("the service is shutting down: send the request to another one")))


def resident(name: str, source: str = "demo") -> ResidentAdapter:
    """A LoRA adapter."""
    return ResidentAdapter(
        name=name,
        kind=AdapterKind.LORA,
        digest="ab" * 32,
        source=source,
        rank=8,
        target_modules=("q_proj",),
        num_layers=30,
        experts=(),
        size_bytes=1000,
        active_requests=0,
        load_time=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
        ordering="",
        pinned=False,
        last_use_time=datetime(2026, 1, 2, 3, 4, 6, tzinfo=UTC),
    )


class FakeShelf:
    """Adapters in a dict; `refusal`, if set, is raised by every method."""

    def __init__(self, *names: str) -> None:
        self.adapters = {name: resident(name) for name in names}
        self.current = ActiveSet(BaseSelection(), 0)
        self.refusal: Exception | None = None
        self.expected: list[str | None] = []
        self.log = ResidencyLog()

    async def load(
        self, name: str, source: str, *, replace: bool, expected_digest: str | None, pinned: bool
    ) -> ResidentAdapter:
        self._check()
        self.expected.append(expected_digest)
        self.adapters[name] = dataclasses.replace(resident(name, source), pinned=pinned)
        return self.adapters[name]

    def pin(self, name: str, pinned: bool) -> ResidentAdapter:
        self.adapters[name] = dataclasses.replace(self.get(name), pinned=pinned)
        return self.adapters[name]

    def watch(self, resume_token: str | None, on_ready: Callable[[], None]) -> ResidencyWatch:
        self._check()
        snapshot = ResidencySnapshot(tuple(self.adapters.values()), self.current, self.log.generation)
        return self.log.watch(resume_token, lambda: snapshot, on_ready, self.log.end)

    def unload(self, name: str, *, expected_digest: str | None) -> ResidentAdapter:
        adapter = self.get(name)
        self.expected.append(expected_digest)
        del self.adapters[name]
        return adapter

    def get(self, name: str) -> ResidentAdapter:
        self._check()
        if name not in self.adapters:
            raise AdapterNotFound(f"no adapter {name!r} is loaded", adapter=name)
        return self.adapters[name]

    def list_all(self) -> Sequence[ResidentAdapter]:
        self._check()
        return list(self.adapters.values())

    def activate(self, selection: Selection) -> ActiveSet:
        self._check()
        self.current = ActiveSet(selection, self.current.generation + 1)
        return self.current

    def active(self) -> ActiveSet:
        return self.current

    def _check(self) -> None:
        if self.refusal is not None:
            raise self.refusal


class FakeDesk:
    """Applies any ordering, or refuses it."""

    def __init__(self) -> None:
        self.refusal: InferenceError | None = None
        self.calls: list[tuple[str, str | None, bool]] = []

    async def apply(self, ordering: str, *, adapter_model_id: str | None, activate: bool) -> AppliedOrdering:
        if self.refusal is not None:
            raise self.refusal
        self.calls.append((ordering, adapter_model_id, activate))
        return AppliedOrdering(
            f"orderings/{ordering}@0123456789abcdef",
            (resident("pirate"),),
            ActiveSet(BaseSelection(), 0),
            ("take care",),
        )
