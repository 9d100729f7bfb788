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
    """Draws tokens by adapters (mean over layers), and adapters by layers (mean over tokens).

    Raises CommandError if matplotlib is missing or does not know the file's ending, OSError if it cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise CommandError("MATPLOTLIB_MISSING", "pictures need matplotlib: pip install 'loramux[plot]'") from None
    tokens, layers, experts = record.values.shape
    width = min(max(7.0, 2.0 + 0.17 * tokens), 40.0)
    panels = 2 if layers > 1 else 1
    figure: Any = Figure(figsize=(width, 1.6 + panels * (1.0 + 0.32 * experts)), layout="constrained")
    axes = figure.subplots(panels, 1, squeeze=False)[:, 0]
    _title(figure, title)
    _token_panel(figure, axes[0], record)
    if layers > 1:
        _layer_panel(figure, axes[1], record)
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
    image = axis.imshow(record.values.mean(axis=1).T, aspect="auto", cmap="viridis", vmin=0, interpolation="nearest")
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


def _layer_panel(figure: Any, axis: Any, record: ScalingsRecord) -> None:
    image = axis.imshow(record.values.mean(axis=0).T, aspect="auto", cmap="viridis", vmin=0, interpolation="nearest")
    _name_experts(axis, record.experts)
    axis.set_title("scaling of each adapter in each layer (mean over tokens)", fontsize=9)
    axis.set_xlabel("row of the ordering's layers", fontsize=8)
    axis.tick_params(axis="x", labelsize=7)
    figure.colorbar(image, ax=axis, fraction=0.03, pad=0.01).ax.tick_params(labelsize=7)


def _name_experts(axis: Any, experts: Sequence[str]) -> None:
    axis.set_yticks(np.arange(len(experts)), experts)
    axis.tick_params(axis="y", labelsize=9)
    for label in axis.get_yticklabels():
        label.set_parse_math(False)


def _shortened(text: str, limit: int = 100) -> str:
    line = " ".join(text.split())
    return line if len(line) <= limit else line[: limit - 1] + "…"
