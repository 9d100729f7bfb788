"""What the servicers need from the rest of the service, as protocols: the composition or a test provides them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Protocol

from prometheus_client.registry import Collector

if TYPE_CHECKING:  # types only: what stands behind them brings torch along
    from inference_svc.adapters.ordering import AppliedOrdering
    from inference_svc.adapters.residency import ResidencyUpdate
    from inference_svc.adapters.resident import ActiveSet, ResidentAdapter
    from inference_svc.adapters.selection import Selection
    from inference_svc.engine.request import Event, GenerationRequest, KVCacheUsage


@dataclass(frozen=True, slots=True)
class ChatTurn:
    """One message of a conversation."""

    role: str
    content: str


class OutputStream(Protocol):
    """The answer of one accepted request; fed by the engine, drained by the stream's handler."""

    def take(self) -> Sequence[Event]:
        """Everything that is pending, consecutive outputs joined; empty if nothing is."""

    def cancel(self) -> None:
        """Stop the request; from any thread, any number of times."""


class GenerationEngine(Protocol):
    """Runs requests."""

    @property
    def is_healthy(self) -> bool:
        """False once nothing can run any more."""

    @property
    def context_length(self) -> int:
        """Most tokens of prompt and answer together."""

    @property
    def kv_cache_usage(self) -> KVCacheUsage:
        """How the memory for keys and values is used, at this moment."""

    def submit(self, request: GenerationRequest, on_ready: Callable[[], None]) -> OutputStream:
        """Accept a request; `on_ready` is called from any thread whenever there is something to take.

        Raises:
            InferenceError: the request is refused.
        """


class Tokenizer(Protocol):
    """Text to token ids and back; may block, so it is called in a thread."""

    @property
    def vocab_size(self) -> int:
        """Number of token ids."""

    def encode(self, text: str) -> Sequence[int]:
        """Text to ids, with the tokens that the model's tokenizer adds."""

    def encode_chat(self, turns: Sequence[ChatTurn]) -> Sequence[int]:
        """A rendered conversation to ids."""

    def render_chat(self, turns: Sequence[ChatTurn]) -> str:
        """A conversation as text."""

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        """Ids to text."""


class ModelDescription(Protocol):
    """The model that is served, field by field as in the contract's `Model`."""

    @property
    def base_model_id(self) -> str:
        """What orderings call it."""

    @property
    def architecture(self) -> str:
        """For instance `llama`."""

    @property
    def quantization(self) -> str:
        """The type of most weights."""

    @property
    def vocab_size(self) -> int:
        """Number of token ids."""

    @property
    def num_layers(self) -> int:
        """Transformer layers."""

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights in memory."""

    @property
    def device(self) -> str:
        """`cpu` or `cuda:0`."""

    @property
    def kernels(self) -> str:
        """Which kernels run."""

    @property
    def batch_invariant(self) -> bool:
        """No row's arithmetic depends on the rest of the batch."""

    @property
    def adapter_modules(self) -> Sequence[str]:
        """Module names that adapters can change."""


class AdapterWatch(Protocol):
    """What one watcher has to be told."""

    def take(self) -> Sequence[ResidencyUpdate]:
        """Everything that is pending; may be empty.

        Raises:
            WatcherTooSlow: too much was left unread.
        """

    def cancel(self) -> None:
        """Watch no longer; from any thread, any number of times."""


@dataclass(frozen=True, slots=True)
class FollowedOrdering:
    """How following an ordering goes; the fields are those of the contract."""

    reference: str  # `orderings/{id}` or `orderings/{id}@{tag}`
    applied: str  # `orderings/{id}@{revision}`, or empty
    last_seen: str  # likewise
    problem: str  # why the last attempt failed, or empty
    last_heard_time: datetime | None


class AdapterShelf(Protocol):
    """The resident adapters; every method may block, so it is called in a thread.

    Every method raises an InferenceError for what it refuses.
    """

    async def load(
        self, name: str, source: str, *, replace: bool, expected_digest: str | None, pinned: bool
    ) -> ResidentAdapter:
        """Load, check and register an adapter; the one method that does not block."""

    def unload(self, name: str, *, expected_digest: str | None) -> ResidentAdapter:
        """Take an adapter away from later requests."""

    def pin(self, name: str, pinned: bool) -> ResidentAdapter:
        """Keep an adapter from being evicted, or no longer."""

    def watch(self, resume_token: str | None, on_ready: Callable[[], None]) -> AdapterWatch:
        """Be told of every change; `on_ready` is called from any thread whenever there is something to take."""

    def get(self, name: str) -> ResidentAdapter:
        """One adapter."""

    def list_all(self) -> Sequence[ResidentAdapter]:
        """All adapters by name."""

    def activate(self, selection: Selection) -> ActiveSet:
        """Replace the active default."""

    def active(self) -> ActiveSet:
        """The active default."""


class OrderingDesk(Protocol):
    """Applies orderings by name."""

    async def apply(self, ordering: str, *, adapter_model_id: str | None, activate: bool) -> AppliedOrdering:
        """Fetch `{id}` or `{id}@{revision}`, load what it names and, if asked to, activate it.

        Raises:
            InferenceError: it is refused; what was applied before keeps working.
        """


class ServedEngine(GenerationEngine, Protocol):
    """An engine that runs already and can be ended; these methods block, so they are called in a thread."""

    def drain(self, timeout_seconds: float) -> bool:
        """Refuse new requests and wait for the running ones; False if some still run."""

    def stop(self) -> None:
        """End; what still runs fails with Draining. Any number of times."""


@dataclass(frozen=True, slots=True)
class Service:
    """Everything that the server serves, loaded and running."""

    engine: ServedEngine
    tokenizer: Tokenizer
    description: ModelDescription
    adapters: AdapterShelf
    orderings: OrderingDesk
    version: str
    close: Callable[[], Awaitable[None]]
    followed: Callable[[], Sequence[FollowedOrdering]] = tuple
    collectors: Sequence[Collector] = ()  # of metrics, beside those of calls
