"""What is asked of a contender, and what its answer took."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

Kind = Literal["base", "lora", "pair", "xlora", "frozen xlora"]


@dataclass(frozen=True, slots=True)
class Choice:
    """The adapters of one stream: none, LoRA number `index`, that and the next one at half weight, or the mixture."""

    kind: Kind = "base"
    index: int = 0


BASE = Choice()


@dataclass(frozen=True, slots=True)
class Stream:
    """One request: a prompt, how many tokens to write (greedy, whatever they are), and with which adapters."""

    prompt: str
    new_tokens: int
    choice: Choice = BASE


@dataclass(frozen=True, slots=True)
class Timing:
    """What one stream took, in seconds since all streams of its run were started."""

    prompt_tokens: int
    new_tokens: int
    first_token: float
    last_token: float

    @property
    def decode_rate(self) -> float:
        """Tokens a second after the first one: the prompt's share is left out."""
        return (self.new_tokens - 1) / (self.last_token - self.first_token)

    @property
    def prefill_rate(self) -> float:
        """Prompt tokens a second until the first token."""
        return self.prompt_tokens / self.first_token


@dataclass(frozen=True, slots=True)
class Run:
    """All streams of one run, started at once."""

    timings: tuple[Timing, ...]
    seconds: float  # until the last one had ended

    @property
    def total_rate(self) -> float:
        """New tokens of all streams a second, prompts included in the time."""
        return sum(timing.new_tokens for timing in self.timings) / self.seconds


class Contender(Protocol):
    """Somebody who continues prompts: Loramux or a peer, ready and waiting."""

    @property
    def name(self) -> str:
        """As the table calls it."""
        ...

    def run(self, streams: Sequence[Stream]) -> Run:
        """Answer all streams at once.

        Raises:
            WrongAnswer: something else was computed than what was asked for.
        """
        ...


class WrongAnswer(Exception):
    """A contender did other work than what it was asked for: its time would say nothing."""


def checked(name: str, streams: Sequence[Stream], run: Run, *, may_stop_early: bool = False) -> Run:
    """The run, if every stream has its tokens.

    Raises:
        WrongAnswer: a stream has others.
    """
    for stream, timing in zip(streams, run.timings, strict=True):
        if timing.new_tokens != stream.new_tokens and not (may_stop_early and timing.new_tokens > 1):
            raise WrongAnswer(f"{name} wrote {timing.new_tokens} tokens of {stream.new_tokens}")
    return run
