"""How often an X-LoRA request computes new scalings, and for how long. Pure Python.

The prompt always has scalings of its own for each of its tokens. Decode pass j computes the j-th new token; pass 0 is
what the last token of the prompt was computed in.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EveryToken:
    """Each token has scalings of its own."""


@dataclass(frozen=True, slots=True)
class FrozenAfter:
    """Decode passes 1 to `passes` have scalings of their own; those of the last hold for all that follow.

    0 freezes the scalings of the prompt's last token. Source: `tgt_non_granular_index` of mistral.rs.
    """

    passes: int


@dataclass(frozen=True, slots=True)
class RecomputedEvery:
    """Every `passes`-th decode pass computes scalings; those between take the last ones."""

    passes: int


@dataclass(frozen=True, slots=True)
class FrozenWhenSettled:
    """Once no scaling has changed by more than `epsilon` from pass to pass, `passes` times in a row, the last hold."""

    epsilon: float
    passes: int


Granularity = EveryToken | FrozenAfter | RecomputedEvery | FrozenWhenSettled
EVERY_TOKEN = EveryToken()


def scaling_source(granularity: Granularity, num_prompt_tokens: int, position: int) -> int:
    """The position whose hidden state gives the scalings of a position, as long as nothing is frozen."""
    last_prompt = num_prompt_tokens - 1
    if isinstance(granularity, RecomputedEvery) and position > last_prompt:
        return position - (position - last_prompt) % granularity.passes
    return position


def most_scaling_tokens(granularity: Granularity, num_prompt_tokens: int, max_total_tokens: int) -> int:
    """How many positions the scaling pass can come to see."""
    if isinstance(granularity, FrozenAfter):
        return min(max_total_tokens, num_prompt_tokens + granularity.passes)
    return max_total_tokens


def parse_granularity(text: str) -> Granularity:
    """`every-token`, `frozen-after:K`, `every:N` or `settled:EPSILON:PASSES`.

    Raises:
        ValueError: none of these; says what is wrong.
    """
    kind, *values = text.split(":")
    try:
        match kind, values:
            case "every-token", []:
                return EVERY_TOKEN
            case "frozen-after", [passes] if int(passes) >= 0:
                return FrozenAfter(int(passes))
            case "every", [passes] if int(passes) >= 1:
                return RecomputedEvery(int(passes))
            case "settled", [epsilon, passes] if 0 <= float(epsilon) < float("inf") and int(passes) >= 1:
                return FrozenWhenSettled(float(epsilon), int(passes))
    except ValueError:
        pass
    raise ValueError(
        f"{text!r} says no granularity of scalings: write `every-token`, `frozen-after:K` (K at least 0), `every:N` "
        "(N at least 1) or `settled:EPSILON:PASSES` (for instance `settled:0.01:3`)"
    )
