"""The vocabulary of the engine: what a request says, and the events that answer it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from inference_svc.adapters.classifier import XLoraOverrides
from inference_svc.adapters.selection import ActiveSelection, AppliedAdapter, Mixture, Selection
from inference_svc.errors import InferenceError, InvalidRequest
from inference_svc.scheduling.granularity import Granularity


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen; the defaults change nothing. Ranges are those of the contract."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int | None = None
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None

    def __post_init__(self) -> None:
        """Refuse truncation of a distribution that greedy choice never draws from.

        Raises:
            InvalidRequest: temperature 0 together with top_p, top_k or min_p.
        """
        if self.is_greedy:
            for name, neutral in (("top_p", 1.0), ("top_k", None), ("min_p", 0.0)):
                value = getattr(self, name)
                if value != neutral and not (name == "top_k" and value == 1):
                    raise InvalidRequest(
                        f"sampling.{name}",
                        f"temperature 0 asks for the most probable token, {name} {value} for a draw: set one of them",
                    )

    @property
    def is_greedy(self) -> bool:
        """The most probable token, always."""
        return self.temperature == 0.0

    @property
    def has_penalties(self) -> bool:
        """Logits depend on tokens seen."""
        return (self.repetition_penalty, self.presence_penalty, self.frequency_penalty) != (1.0, 0.0, 0.0)


@dataclass(frozen=True, slots=True)
class Stopping:
    """When an answer ends."""

    max_tokens: int | None = None  # None: as many as fit, at most DEFAULT_MAX_TOKENS
    min_tokens: int = 0
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        """Refuse bounds that exclude each other.

        Raises:
            InvalidRequest: min_tokens above max_tokens.
        """
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise InvalidRequest(
                "stopping.min_tokens", f"min_tokens {self.min_tokens} is more than max_tokens {self.max_tokens}"
            )


@dataclass(frozen=True, slots=True)
class XLoraOptions:
    """Changes of the mixture that a request runs with; a granularity of None is the service's default."""

    granularity: Granularity | None = None
    overrides: XLoraOverrides = field(default_factory=XLoraOverrides)

    def applied_to(self, mixture: Mixture) -> Mixture:
        """The mixture as the request wants it; one without an X-LoRA stays as it is.

        Raises:
            InvalidRequest: the X-LoRA cannot do that.
        """
        xlora = mixture.xlora
        if xlora is None:
            return mixture
        top_k, config = self.overrides.top_k_lora, xlora.classifier.config
        if top_k is not None and top_k > len(xlora.bank.experts):
            raise InvalidRequest(
                "xlora.top_k_lora",
                f"{top_k} adapters of {len(xlora.bank.experts)}: the X-LoRA has {', '.join(xlora.bank.experts)}",
                value=str(top_k),
                limit=str(len(xlora.bank.experts)),
            )
        temperature = self.overrides.softmax_temperature
        if temperature is not None and not config.enable_softmax:
            raise InvalidRequest(
                "xlora.softmax_temperature",
                f"temperature {temperature:g}, but the X-LoRA was trained without softmax (`enable_softmax` is false)",
                value=str(temperature),
            )
        return replace(mixture, xlora=xlora.with_overrides(self.overrides))


class ScalingsDetail(Enum):
    """How much of the X-LoRA scalings to return."""

    NONE = "none"
    MEAN = "mean"
    FULL = "full"


@dataclass(frozen=True, slots=True)
class ResponseOptions:
    """What to return beside the text."""

    logprobs: int | None = None
    prompt_logprobs: int | None = None
    scalings: ScalingsDetail = ScalingsDetail.NONE
    half_precision: bool = False  # scalings as float16

    def __post_init__(self) -> None:
        """Refuse an encoding of nothing.

        Raises:
            InvalidRequest: half precision without scalings.
        """
        if self.half_precision and self.scalings is ScalingsDetail.NONE:
            raise InvalidRequest(
                "response.scalings_type",
                "float16 scalings, but none are asked for: set response.scalings",
            )


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """A request as the engine takes it: already tokenized and validated against the contract's ranges."""

    request_id: str
    prompt_token_ids: tuple[int, ...]
    selection: Selection = field(default_factory=ActiveSelection)
    sampling: Sampling = field(default_factory=Sampling)
    stopping: Stopping = field(default_factory=Stopping)
    response: ResponseOptions = field(default_factory=ResponseOptions)
    xlora: XLoraOptions = field(default_factory=XLoraOptions)
    # The answer is a text of its own, as in a conversation; else it goes on from the prompt's, and begins with a space
    # if a word follows one. Tokenizers of Llama 2's kind put a space before every text, which is none of it.
    begins_text: bool = False

    def mixture_of(self, mixture: Mixture, applied: Sequence[AppliedAdapter]) -> Mixture:
        """What the selection stands for, with the changes that the request makes.

        Args:
            mixture: what the selection stands for.
            applied: the same by name.

        Raises:
            InvalidRequest: it asks for what only an X-LoRA has, and there is none, or not one that can do it.
        """
        if mixture.xlora is None:
            if self.xlora != XLoraOptions():
                self._refuse_without_xlora("xlora", "options of an X-LoRA", applied)
            if self.response.scalings is not ScalingsDetail.NONE:
                self._refuse_without_xlora("response.scalings", "scalings of an X-LoRA are asked for", applied)
        return self.xlora.applied_to(mixture)

    def _refuse_without_xlora(self, field: str, what: str, applied: Sequence[AppliedAdapter]) -> NoReturn:
        names = ", ".join(f"`{adapter.name}`" for adapter in applied)
        runs = f"the LoRA{'s' if len(applied) > 1 else ''} {names}" if applied else "the base model"
        default = ", which is the active default" if isinstance(self.selection, ActiveSelection) else ""
        raise InvalidRequest(
            field,
            f"{what}, but the request runs with {runs}{default}: select an X-LoRA in `adapters`, or do not set {field}",
            adapters=",".join(adapter.name for adapter in applied),
        )


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """A token and, if asked for, its log probability and those of the most probable ones."""

    token_id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class ScalingsChunk:
    """Scalings of consecutive positions."""

    first_position: int
    values: NDArray[np.floating]  # float32 or float16 [num_tokens, num_layers or 1, num_adapters]


class FinishReason(Enum):
    """Why an answer ended."""

    EOS = "eos"
    STOP = "stop"
    MAX_TOKENS = "max_tokens"
    CONTEXT = "context"


@dataclass(frozen=True, slots=True)
class Started:
    """The request was accepted; always the first event."""

    request_id: str
    prompt_tokens: int
    applied: tuple[AppliedAdapter, ...]
    seed: int | None  # None: greedy


@dataclass(frozen=True, slots=True, eq=False)
class Output:
    """New tokens and what belongs to them."""

    text: str
    tokens: tuple[TokenLogprobs, ...]
    prompt_tokens: tuple[TokenLogprobs, ...] = ()
    scalings: tuple[ScalingsChunk, ...] = ()

    def joined_with(self, later: Output) -> Output:
        """This output and the next as one."""
        return Output(
            self.text + later.text,
            self.tokens + later.tokens,
            self.prompt_tokens + later.prompt_tokens,
            self.scalings + later.scalings,
        )


@dataclass(frozen=True, slots=True)
class Finished:
    """The answer is complete; always the last event of a request that did not fail."""

    reason: FinishReason
    stop: str | None
    prompt_tokens: int
    completion_tokens: int
    applied: tuple[AppliedAdapter, ...]
    cached_prompt_tokens: int = 0  # prompt tokens that were not computed, but found in the prefix cache


@dataclass(frozen=True, slots=True, eq=False)
class Failed:
    """The request ended without an answer; always the last event."""

    error: InferenceError


@dataclass(frozen=True, slots=True)
class KVCacheUsage:
    """The memory for keys and values, as in the contract's `KvCacheUsage`."""

    total_tokens: int
    free_tokens: int
    shareable_tokens: int
    running_requests: int
    waiting_requests: int
    prompt_tokens: int
    cached_prompt_tokens: int
    evicted_tokens: int
    preemptions: int


Event = Started | Output | Finished | Failed
