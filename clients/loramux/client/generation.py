"""What a request may ask for and what an answer holds, and the way between these and the protocol's messages."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypedDict

from loramux.client.adapters import AdapterChoice, AppliedAdapter, choice_to_proto
from loramux.client.errors import invalid_argument
from loramux.client.prompts import Prompt, prompt_to_proto
from loramux.client.scalings import Scalings
from loramux.client.xlora import XLoRAOptions, xlora_options_to_proto
from loramux.inference.v1 import generation_pb2

ScalingsDetail = Literal["mean", "full"]
ScalingsType = Literal["float32", "float16"]


class GenerateOptions(TypedDict, total=False):
    """Everything optional about a request; what is left out, the service decides (see `generation.proto`)."""

    temperature: float
    top_p: float
    top_k: int
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    seed: int
    max_tokens: int
    min_tokens: int
    stop: str | Sequence[str]
    ignore_eos: bool
    logprobs: int
    prompt_logprobs: int
    scalings: ScalingsDetail
    scalings_type: ScalingsType
    xlora: XLoRAOptions
    request_id: str
    timeout: float
    """Seconds for the whole answer; without it there is no deadline."""


class FinishReason(enum.StrEnum):
    """Why an answer ended."""

    EOS = "eos"
    STOP = "stop"
    MAX_TOKENS = "max_tokens"
    CONTEXT = "context"


@dataclass(frozen=True, slots=True)
class TopToken:
    """A token that could have been, and the natural logarithm of its probability."""

    id: int
    logprob: float


@dataclass(frozen=True, slots=True)
class Token:
    """A token; `logprob` (natural logarithm) and `top` only if asked for."""

    id: int
    logprob: float | None = None
    top: tuple[TopToken, ...] = ()


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of a request."""

    prompt_tokens: int
    completion_tokens: int
    cached_prompt_tokens: int = 0
    """Of the prompt, found in the service's prefix cache and so not computed again."""


@dataclass(frozen=True, slots=True)
class Started:
    """What an accepted request runs with; `adapters` is empty for the plain base model, `seed` None when greedy."""

    request_id: str
    prompt_tokens: int
    adapters: tuple[AppliedAdapter, ...]
    seed: int | None


@dataclass(frozen=True, slots=True)
class Piece:
    """New text and the tokens that completed it."""

    text: str
    tokens: tuple[Token, ...]
    scalings: Scalings | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Generation:
    """A whole answer."""

    text: str
    token_ids: tuple[int, ...]
    tokens: tuple[Token, ...]
    finish_reason: FinishReason
    stop: str | None
    usage: Usage
    adapters: tuple[AppliedAdapter, ...]
    seed: int | None
    request_id: str
    logprobs: tuple[float, ...] | None
    """Of each new token, if asked for."""
    prompt_tokens: tuple[Token, ...]
    """The prompt with log probabilities, if `prompt_logprobs` asked for it."""
    scalings: Scalings | None


_SAMPLING = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "seed",
)
_STOPPING = ("max_tokens", "min_tokens", "ignore_eos")
_RESPONSE = ("logprobs", "prompt_logprobs")
_TYPES = {
    "float32": generation_pb2.SCALINGS_TYPE_UNSPECIFIED,
    "float16": generation_pb2.SCALINGS_TYPE_FLOAT16,
}
_DETAILS = {"mean": generation_pb2.SCALINGS_DETAIL_MEAN, "full": generation_pb2.SCALINGS_DETAIL_FULL}


def generate_request(
    prompt: Prompt, adapters: AdapterChoice, options: GenerateOptions
) -> generation_pb2.GenerateRequest:
    """The message for a request. Raises InvalidArgument for what cannot be put into a message."""
    unknown = set(options) - set(GenerateOptions.__annotations__)
    if unknown:
        raise invalid_argument(min(unknown), "is not an option of generate")
    request = generation_pb2.GenerateRequest(prompt=prompt_to_proto(prompt), adapters=choice_to_proto(adapters))
    if "request_id" in options:
        request.request_id = options["request_id"]
    for part, names in ((request.sampling, _SAMPLING), (request.stopping, _STOPPING), (request.response, _RESPONSE)):
        for name in names:
            if name in options:
                _set(part, name, options[name])  # type: ignore[literal-required]
    if "stop" in options:
        stop = options["stop"]
        request.stopping.stop.extend([stop] if isinstance(stop, str) else stop)
    if "scalings" in options:
        detail = options["scalings"]
        if detail not in _DETAILS:
            raise invalid_argument("scalings", f"is {detail!r}; want 'mean' or 'full'")
        request.response.scalings = _DETAILS[detail]
    if "scalings_type" in options:
        kind = options["scalings_type"]
        if kind not in _TYPES:
            raise invalid_argument("scalings_type", f"is {kind!r}; want 'float32' or 'float16'")
        request.response.scalings_type = _TYPES[kind]
    if "xlora" in options:
        request.xlora.CopyFrom(xlora_options_to_proto(options["xlora"]))
    return request


def _set(
    part: generation_pb2.Sampling | generation_pb2.Stopping | generation_pb2.ResponseOptions,
    name: str,
    value: float,
) -> None:
    try:
        setattr(part, name, value)
    except (TypeError, ValueError) as error:
        raise invalid_argument(name, f"cannot be {value!r} ({error})") from error
