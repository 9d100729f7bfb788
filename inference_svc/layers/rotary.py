"""Rotary position embedding (arXiv 2104.09864): its frequencies, however a model stretches them, and its tables.

The frequencies are computed as transformers computes them, operation by operation in float32: at a position of 100,000
one unit in the last place of a frequency turns an angle by 0.01.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class LinearScaling:
    """Positions divided by a factor."""

    factor: float


@dataclass(frozen=True, slots=True)
class Llama3Scaling:
    """Low frequencies divided by a factor, high ones left alone, those between interpolated."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_length: int


@dataclass(frozen=True, slots=True)
class YarnScaling:
    """YaRN (arXiv 2309.00071)."""

    factor: float
    original_length: int
    attention_factor: float
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True


@dataclass(frozen=True, slots=True)
class LongRope:
    """LongRoPE (arXiv 2402.13753): sequences of more than `original_length` tokens have other frequencies."""

    short_factors: tuple[float, ...]  # [dim / 2]
    long_factors: tuple[float, ...]  # [dim / 2]
    original_length: int
    attention_factor: float


@dataclass(frozen=True, slots=True)
class FrequencyDivisors:
    """One divisor for each frequency: how GGUF stores the scaling of Llama 3 (`rope_freqs.weight`)."""

    divisors: tuple[float, ...]  # [dim / 2]


RopeScaling = LinearScaling | Llama3Scaling | YarnScaling | LongRope | FrequencyDivisors


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """How a model turns positions into angles."""

    dim: int  # so many dimensions of a head are rotated; even
    theta: float = 10000.0
    scaling: RopeScaling | None = None

    @property
    def switch_length(self) -> int | None:
        """A sequence of more tokens has other frequencies, from its first token on; None: all have the same."""
        return self.scaling.original_length if isinstance(self.scaling, LongRope) else None


class RotaryTable:
    """cos and sin of every position of the longest sequence there can be, computed once in float32.

    With LongRoPE there are two tables, one after the other: `switch_length` rows for sequences up to that length, then
    those for longer ones, if there can be any.
    """

    def __init__(self, rope: RopeConfig, longest: int, *, device: torch.device) -> None:
        self.cosines, self.sines = (table.to(device) for table in _tables(rope, longest))

    @property
    def dim(self) -> int:
        """How many dimensions of a head it rotates."""
        return 2 * self.cosines.shape[1]

    def at(self, rows: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """cos and sin [num_tokens, dim / 2] at rows int64 [num_tokens]."""
        return self.cosines.index_select(0, rows).to(dtype), self.sines.index_select(0, rows).to(dtype)


def _tables(rope: RopeConfig, longest: int) -> tuple[Tensor, Tensor]:
    powers = rope.theta ** (torch.arange(0, rope.dim, 2, dtype=torch.int64).float() / rope.dim)  # [dim / 2]
    factor = 1.0
    angles: list[Tensor] = []
    match rope.scaling:
        case None:
            angles = [_angles(longest, 1.0 / powers)]
        case LinearScaling():
            angles = [_angles(longest, (1.0 / powers) / rope.scaling.factor)]
        case Llama3Scaling():
            angles = [_angles(longest, _llama3(1.0 / powers, rope.scaling))]
        case YarnScaling():
            angles = [_angles(longest, _yarn(powers, rope, rope.scaling))]
            factor = rope.scaling.attention_factor
        case LongRope():
            short, long = (torch.tensor(f) for f in (rope.scaling.short_factors, rope.scaling.long_factors))
            angles = [
                _angles(min(longest, rope.scaling.original_length), 1.0 / (short * powers)),
                _angles(longest if longest > rope.scaling.original_length else 0, 1.0 / (long * powers)),
            ]
            factor = rope.scaling.attention_factor
        case FrequencyDivisors():
            angles = [_angles(longest, (1.0 / powers) / torch.tensor(rope.scaling.divisors))]
    joined = torch.cat(angles)
    return joined.cos() * factor, joined.sin() * factor


def _angles(length: int, frequencies: Tensor) -> Tensor:
    """[length, dim / 2]."""
    return torch.outer(torch.arange(length).float(), frequencies)


def _llama3(frequencies: Tensor, scaling: Llama3Scaling) -> Tensor:
    """Source: `_compute_llama3_parameters` of transformers."""
    longest = scaling.original_length / scaling.low_freq_factor
    shortest = scaling.original_length / scaling.high_freq_factor
    wavelengths = 2 * math.pi / frequencies
    scaled = torch.where(wavelengths > longest, frequencies / scaling.factor, frequencies)
    smooth = (scaling.original_length / wavelengths - scaling.low_freq_factor) / (
        scaling.high_freq_factor - scaling.low_freq_factor
    )
    between = (1 - smooth) * scaled / scaling.factor + smooth * scaled
    return torch.where((wavelengths >= shortest) & (wavelengths <= longest), between, scaled)


def _yarn(powers: Tensor, rope: RopeConfig, scaling: YarnScaling) -> Tensor:
    """Source: `_compute_yarn_parameters` of transformers."""

    def dimension(rotations: float) -> float:
        """The dimension whose wave turns so often within the original length."""
        turns = math.log(scaling.original_length / (rotations * 2 * math.pi))
        return (rope.dim * turns) / (2 * math.log(rope.theta))

    low, high = dimension(scaling.beta_fast), dimension(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rope.dim - 1)
    if low == high:
        high += 0.001
    ramp = ((torch.arange(rope.dim // 2, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    kept = 1 - ramp  # how much of a frequency is left alone
    return (1.0 / (scaling.factor * powers)) * (1 - kept) + (1.0 / powers) * kept
