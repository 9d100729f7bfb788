"""X-LoRA scalings as a picture. Needs matplotlib, which is imported when a picture is asked for."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from loramux.cli.heat_map import visible
from loramux.cli.problems import CommandError
from loramux.client import ScalingsRecord

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_LABELS = 160
"""Tokens up to which each one is named on the axis."""


def save_plot(record: ScalingsRecord, path: Path, title: str) -> None:
    """Draws adapters by tokens (mean over layers), the entropy of each token, adapters by layers (mean over tokens).

    Raises CommandError if matplotlib is missing or does not know the file's ending, OSError if it cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise CommandError("MATPLOTLIB_MISSING", "pictures need matplotlib: pip install 'loramux[plot]'") from None
    tokens, layers, experts = record.values.shape
    width = min(max(7.0, 2.0 + 0.17 * tokens), 40.0)
    map_height = 1.0 + 0.32 * experts
    heights = [map_height, 1.6, map_height] if layers > 1 else [map_height, 1.6]
    figure: Any = Figure(figsize=(width, 1.8 + sum(heights)), layout="constrained")
    axes = figure.subplots(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
    _title(figure, title)
    _token_panel(figure, axes[0], record)
    _entropy_panel(axes[1], record)
    if layers > 1:
        _layer_panel(figure, axes[2], record)
    with warnings.catch_warnings():
        # A glyph that the font lacks becomes a box; that is no reason to fail.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        try:
            figure.savefig(path, dpi=150)
        except ValueError as error:
            raise CommandError("PICTURE_FORMAT", str(error)) from error


def _title(figure: Any, title: str) -> None:
    text = figure.suptitle(_shortened(title), fontsize=11)
    text.set_parse_math(False)


def _token_panel(figure: Any, axis: Any, record: ScalingsRecord) -> None:
    tokens = len(record.token_texts)
    image = _heat_map(axis, record.values.mean(axis=1).T)
    _name_experts(axis, record.experts)
    axis.set_title("scaling of each adapter at each token (mean over layers)", fontsize=9)
    if tokens <= MAX_LABELS:
        axis.set_xticks(np.arange(tokens), [_shortened(visible(text), 14) for text in record.token_texts])
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
    figure.colorbar(image, ax=axis, fraction=0.03, pad=0.01).ax.tick_params(labelsize=7)


def _entropy_panel(axis: Any, record: ScalingsRecord) -> None:
    entropy = record.entropy()
    positions = np.arange(len(entropy))
    low, middle, high = np.nanquantile(np.where(np.isnan(entropy), 0, entropy), (0.1, 0.5, 0.9), axis=1)
    axis.plot(positions, middle, color="#3b528b", linewidth=1.5)
    if entropy.shape[1] > 1:
        axis.fill_between(positions, low, high, color="#3b528b", alpha=0.2, linewidth=0)
    axis.set_xlim(-0.5, len(entropy) - 0.5)
    axis.set_ylim(-0.02, 1.02)
    spread = "median of the layers, band: 10 to 90 percent of them; " if entropy.shape[1] > 1 else ""
    axis.set_title(f"entropy at each token ({spread}1: all adapters alike, 0: one alone)", fontsize=9)
    axis.tick_params(labelsize=7)
    axis.grid(alpha=0.3, linewidth=0.5)
    if 0 < record.prompt_tokens < len(entropy):
        axis.axvline(record.prompt_tokens - 0.5, color="black", linewidth=1, linestyle="--")


def _layer_panel(figure: Any, axis: Any, record: ScalingsRecord) -> None:
    image = _heat_map(axis, record.values.mean(axis=0).T)
    _name_experts(axis, record.experts)
    axis.set_title("scaling of each adapter in each layer (mean over tokens)", fontsize=9)
    axis.set_xlabel("row of the ordering's layers", fontsize=8)
    axis.tick_params(axis="x", labelsize=7)
    figure.colorbar(image, ax=axis, fraction=0.03, pad=0.01).ax.tick_params(labelsize=7)


def _heat_map(axis: Any, values: Any) -> Any:
    """Colours from 0 up; where scalings are negative (no softmax), from the lowest."""
    return axis.imshow(values, aspect="auto", cmap="viridis", vmin=min(0.0, values.min()), interpolation="nearest")


def _name_experts(axis: Any, experts: Sequence[str]) -> None:
    axis.set_yticks(np.arange(len(experts)), experts)
    axis.tick_params(axis="y", labelsize=9)
    for label in axis.get_yticklabels():
        label.set_parse_math(False)


def _shortened(text: str, limit: int = 100) -> str:
    line = " ".join(text.split())
    return line if len(line) <= limit else line[: limit - 1] + "…"
