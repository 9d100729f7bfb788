"""X-LoRA scalings as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from loramux.cli.heat_map import visible
from loramux.cli.pictures import LINE_COLOURS, heat_map_panel, line_panel, new_figure, save_picture, shortened
from loramux.client import ScalingsRecord

MAX_LABELS = 160
"""Tokens up to which each one is named on the axis."""


def save_plot(record: ScalingsRecord, path: Path, title: str) -> None:
    """Draws adapters by tokens (mean over layers), the entropy of each token, adapters by layers (mean over tokens).

    Raises CommandError if matplotlib is missing or does not know the file's ending, OSError if it cannot be written.
    """
    tokens, layers, experts = record.values.shape
    width = min(max(7.0, 2.0 + 0.17 * tokens), 40.0)
    map_height = 1.0 + 0.32 * experts
    heights = [map_height, 1.6, map_height] if layers > 1 else [map_height, 1.6]
    figure, axes = new_figure(width, heights, title)
    _token_panel(figure, axes[0], record)
    _entropy_panel(axes[1], record)
    if layers > 1:
        _layer_panel(figure, axes[2], record)
    save_picture(figure, path)


def _token_panel(figure: Any, axis: Any, record: ScalingsRecord) -> None:
    tokens = len(record.token_texts)
    title = "scaling of each adapter at each token (mean over layers)"
    heat_map_panel(figure, axis, record.values.mean(axis=1).T, record.experts, title)
    if tokens <= MAX_LABELS:
        axis.set_xticks(np.arange(tokens), [shortened(visible(text), 14) for text in record.token_texts])
        axis.tick_params(axis="x", labelsize=7, labelrotation=90)
        for label in axis.get_xticklabels():
            label.set_parse_math(False)
    else:
        axis.set_xlabel("token", fontsize=8)
    if 0 < record.prompt_tokens < tokens:
        axis.axvline(record.prompt_tokens - 0.5, color="white", linewidth=1.5, linestyle="--")
        for position, name in ((record.prompt_tokens / 2, "prompt"), ((record.prompt_tokens + tokens) / 2, "answer")):
            axis.annotate(
                name, ((position) / tokens, 1.0), xycoords="axes fraction", fontsize=7, ha="center", va="bottom"
            )
        axis.set_title(axis.get_title(), fontsize=9, pad=14)


def _entropy_panel(axis: Any, record: ScalingsRecord) -> None:
    entropy = record.entropy()
    positions = np.arange(len(entropy))
    low, middle, high = np.nanquantile(np.where(np.isnan(entropy), 0, entropy), (0.1, 0.5, 0.9), axis=1)
    spread = "median of the layers, band: 10 to 90 percent of them; " if entropy.shape[1] > 1 else ""
    line_panel(axis, f"entropy at each token ({spread}1: all adapters alike, 0: one alone)")
    axis.plot(positions, middle, color=LINE_COLOURS[0], linewidth=1.5)
    if entropy.shape[1] > 1:
        axis.fill_between(positions, low, high, color=LINE_COLOURS[0], alpha=0.2, linewidth=0)
    axis.set_xlim(-0.5, len(entropy) - 0.5)
    axis.set_ylim(-0.02, 1.02)
    if 0 < record.prompt_tokens < len(entropy):
        axis.axvline(record.prompt_tokens - 0.5, color="black", linewidth=1, linestyle="--")


def _layer_panel(figure: Any, axis: Any, record: ScalingsRecord) -> None:
    title = "scaling of each adapter in each layer (mean over tokens)"
    heat_map_panel(figure, axis, record.values.mean(axis=0).T, record.experts, title)
    axis.set_xlabel("row of the ordering's layers", fontsize=8)
