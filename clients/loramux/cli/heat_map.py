"""X-LoRA scalings as coloured cells of a terminal."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from loramux.client import ScalingsRecord

MAX_ROWS = 64
"""Tokens shown; of a longer text the last ones, which are the answer."""

_SCALE = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37))


def heat_map(record: ScalingsRecord) -> Table:
    """Tokens down, adapters across, mean over layers; bright is large."""
    mean = record.values.mean(axis=1)
    largest = float(mean.max()) if mean.size else 0.0
    first = max(0, len(record.token_texts) - MAX_ROWS)
    table = Table("Token", *map(_heading, record.experts), box=None, padding=(0, 0), pad_edge=False)
    for column in table.columns[1:]:
        column.min_width = 8
    for row in range(first, len(record.token_texts)):
        prompt = row < record.prompt_tokens
        label = Text(visible(record.token_texts[row]) + "  ", style="dim" if prompt else "bold")
        table.add_row(label, *(_cell(float(value), largest) for value in mean[row]))
    parts = [f"mean over {record.values.shape[1]} layers", "prompt tokens dim"]
    if first:
        parts.append(f"the first {first} tokens are not shown")
    table.caption = "; ".join(parts)
    table.caption_justify = "left"
    return table


def visible(text: str) -> str:
    """A token with its white space made visible."""
    marks = {" ": "·", "\n": "\\n", "\t": "\\t", "\r": "\\r"}
    return "".join(
        marks.get(letter, letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}") for letter in text
    )


def _heading(name: str) -> str:
    return f" {name} "


def _cell(value: float, largest: float) -> Text:
    share = 0.0 if largest <= 0 else min(max(value / largest, 0.0), 1.0)
    position = share * (len(_SCALE) - 1)
    low = min(int(position), len(_SCALE) - 2)
    red, green, blue = (
        round(start + (end - start) * (position - low)) for start, end in zip(_SCALE[low], _SCALE[low + 1], strict=True)
    )
    ink = "black" if share > 0.55 else "white"
    return Text(f" {value:.3f} ".center(8), style=f"{ink} on rgb({red},{green},{blue})")
