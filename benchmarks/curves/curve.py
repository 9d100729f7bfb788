"""One curve: what is varied, what was measured at each value, and what the arithmetic expects."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Series:
    """Step times at every value of what is varied."""

    label: str
    x: tuple[int, ...]
    seconds: tuple[tuple[float, ...], ...]  # rounds of each x
    expected: tuple[float, ...]

    @property
    def medians(self) -> list[float]:
        """Of each x."""
        return [statistics.median(values) for values in self.seconds]


@dataclass(frozen=True, slots=True)
class Curve:
    """One picture."""

    name: str
    title: str
    x_label: str
    series: tuple[Series, ...]


def measure_series(
    label: str, x: Sequence[int], measure: Callable[[int], float], expected: Callable[[int], float], rounds: int
) -> Series:
    """Measure every x once, then all of them again: what drifts with the machine so hits all alike."""
    found: Mapping[int, list[float]] = {value: [] for value in x}
    for _ in range(rounds):
        for value in x:
            found[value].append(measure(value))
    return Series(label, tuple(x), tuple(tuple(found[value]) for value in x), tuple(map(expected, x)))


def draw(curve: Curve, path: Path) -> None:
    """Measured medians with their range, and the expected shape beside them."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.2), layout="constrained")
    for series, color in zip(curve.series, ("tab:blue", "tab:orange", "tab:green"), strict=False):
        medians = [1000 * value for value in series.medians]
        low = [middle - 1000 * min(values) for middle, values in zip(medians, series.seconds, strict=True)]
        high = [1000 * max(values) - middle for middle, values in zip(medians, series.seconds, strict=True)]
        axes.errorbar(series.x, medians, yerr=(low, high), marker="o", capsize=3, color=color, label=series.label)
        expected = [1000 * value for value in series.expected]
        axes.plot(series.x, expected, linestyle="--", color=color, label=f"{series.label}: expected")
    axes.set(title=curve.title, xlabel=curve.x_label, ylabel="ms a step", xscale="log", ylim=(0, None))
    ticks = sorted({value for series in curve.series for value in series.x})
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
