"""One line of the table: what was measured, against what, and whether the target is met."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

Better = Literal["higher", "lower"]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Ours against a peer's, or against another figure of ours; every round measured one after the other."""

    work: str
    against: str
    target: float
    ours: tuple[float, ...]  # one a round
    other: tuple[float, ...]  # the same
    unit: str = "tokens/s"
    better: Better = "higher"

    @property
    def ratio(self) -> float:
        """Median over rounds of ours / other: what drifts with the machine drifts for both sides of a round."""
        return statistics.median(a / b for a, b in zip(self.ours, self.other, strict=True))

    @property
    def is_met(self) -> bool:
        """The ratio is the target or better."""
        return self.ratio >= self.target if self.better == "higher" else self.ratio <= self.target


@dataclass(frozen=True, slots=True)
class Limit:
    """A figure of ours that has a bound of its own."""

    work: str
    limit: float
    values: tuple[float, ...]  # one a round
    unit: str
    better: Better = "lower"

    @property
    def value(self) -> float:
        """Median over rounds."""
        return statistics.median(self.values)

    @property
    def is_met(self) -> bool:
        """The value is within the bound."""
        return self.value <= self.limit if self.better == "lower" else self.value >= self.limit


Outcome = Comparison | Limit
Measure = Callable[[], float]


def alternate(rounds: int, ours: Measure, *others: Measure) -> tuple[tuple[float, ...], ...]:
    """Measure ours, the first other, the second, ours, ... after one round that does not count; values by contender."""
    measures: Sequence[Measure] = (ours, *others)
    for measure in measures:
        measure()
    values = [tuple(measure() for measure in measures) for _ in range(rounds)]
    return tuple(zip(*values, strict=True))
