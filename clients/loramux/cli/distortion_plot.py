"""A measured distortion as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from loramux.cli.distortion_report import DistortionReport, heading
from loramux.cli.pictures import LINE_COLOURS, heat_map_panel, line_panel, new_figure, save_picture, shortened

SMALLEST_KL = 1e-9
"""Below it there is only rounding."""


def save_distortion_plot(report: DistortionReport, path: Path) -> None:
    """Draws how KL is distributed, how it goes with the position, and the drift of scalings by layer and adapter.

    Raises CommandError if matplotlib is missing or does not know the file's ending, OSError if it cannot be written.
    """
    drift = next((each["drift"] for each in report.distortions if each["drift"] is not None), None)
    heights = [2.2, 2.0] + ([1.0 + 0.32 * len(drift["experts"])] if drift is not None else [])
    figure, axes = new_figure(9.0, heights, report.title)
    _distribution_panel(axes[0], report)
    _position_panel(axes[1], report)
    if drift is not None:
        title = f"drift of each adapter's scaling in each layer (mean over positions; of all: {drift['mean']:.3g})"
        heat_map_panel(figure, axes[2], np.array(drift["by_layer"]).T, drift["experts"], title)
        axes[2].set_xlabel("row of the ordering's layers", fontsize=8)
    save_picture(figure, path)


def _distribution_panel(axis: Any, report: DistortionReport) -> None:
    line_panel(axis, "share of positions whose KL is larger (dotted: the mean)")
    for (name, kl, _), colour in zip(_lines(report), LINE_COLOURS, strict=False):
        ordered = np.sort(np.maximum(kl, SMALLEST_KL))
        axis.plot(ordered, 1.0 - np.arange(len(ordered)) / len(ordered), color=colour, linewidth=1.5, label=name)
        axis.axvline(max(float(kl.mean()), SMALLEST_KL), color=colour, linewidth=1, linestyle=":")
    axis.set_xscale("log")
    axis.set_xlabel("KL of the next-token distribution, nats", fontsize=8)
    axis.set_ylim(0, 1.02)
    for text in axis.legend(fontsize=8).get_texts():
        text.set_parse_math(False)


def _position_panel(axis: Any, report: DistortionReport) -> None:
    line_panel(axis, "KL at each position that a quarter of the texts has (mean over texts), nats")
    for (_, kl, position), colour in zip(_lines(report), LINE_COLOURS, strict=False):
        count = np.bincount(position)
        known = count >= 0.25 * count[0]  # of the last few texts it is noise
        mean = np.bincount(position, weights=kl)[known] / count[known]
        axis.plot(np.arange(len(mean)), np.maximum(mean, SMALLEST_KL), color=colour, linewidth=1)
    axis.set_yscale("log")
    axis.set_xlabel("position", fontsize=8)


def _lines(report: DistortionReport) -> list[tuple[str, Any, Any]]:
    """Name, KL and position of everything that was measured."""
    return [
        (
            shortened(heading(each), 60),
            np.maximum(np.array(each["positions"]["kl"]), 0.0),
            np.array(each["positions"]["position"]),
        )
        for each in report.distortions
    ]
