"""What pictures have in common. They need matplotlib, which is imported when one is asked for."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from loramux.cli.problems import CommandError

LINE_COLOURS = ("#3b528b", "#21918c", "#5ec962", "#440154")
"""Of viridis, which heat maps have too."""


def new_figure(width: float, heights: Sequence[float], title: str) -> tuple[Any, Any]:
    """A figure with panels of these heights below each other, and the panels; inches.

    Raises CommandError if matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise CommandError("MATPLOTLIB_MISSING", "pictures need matplotlib: pip install 'loramux[plot]'") from None
    figure: Any = Figure(figsize=(width, 1.8 + sum(heights)), layout="constrained")
    panels = figure.subplots(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
    figure.suptitle(shortened(title), fontsize=11).set_parse_math(False)
    return figure, panels


def save_picture(figure: Any, path: Path) -> None:
    """Writes it; the file's ending says the format.

    Raises CommandError if matplotlib does not know the ending, OSError if it cannot be written.
    """
    with warnings.catch_warnings():
        # A glyph that the font lacks becomes a box; that is no reason to fail.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        try:
            figure.savefig(path, dpi=150)
        except ValueError as error:
            raise CommandError("PICTURE_FORMAT", str(error)) from error


def heat_map_panel(figure: Any, axis: Any, values: Any, rows: Sequence[str], title: str) -> None:
    """Colours from 0 up (from the lowest, where some are negative): named rows, numbered columns."""
    image = axis.imshow(values, aspect="auto", cmap="viridis", vmin=min(0.0, values.min()), interpolation="nearest")
    axis.set_yticks(np.arange(len(rows)), rows)
    axis.tick_params(axis="y", labelsize=9)
    for label in axis.get_yticklabels():
        label.set_parse_math(False)
    axis.set_title(title, fontsize=9)
    axis.tick_params(axis="x", labelsize=7)
    figure.colorbar(image, ax=axis, fraction=0.03, pad=0.01).ax.tick_params(labelsize=7)


def line_panel(axis: Any, title: str) -> None:
    """What all panels of lines look like; call it before lines are drawn."""
    axis.set_title(title, fontsize=9)
    axis.tick_params(which="both", labelsize=7)
    axis.grid(alpha=0.3, linewidth=0.5)


def shortened(text: str, limit: int = 100) -> str:
    """One line of at most so many characters."""
    line = " ".join(text.split())
    return line if len(line) <= limit else line[: limit - 1] + "…"
