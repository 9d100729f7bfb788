"""Natural English to compare distributions on: Python's own documentation, and what the demo's base model answered."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from pydoc_data.topics import topics

ANSWERS = Path(__file__).parents[2] / "orderings" / "demo" / "training" / "base_answers.json"
EXCERPT_CHARACTERS = 360


def one_long_text() -> str:
    """Excerpts from every topic of the documentation, with questions and answers between them."""
    parts = [part for pair in zip_longest(_documentation(), _answers()) for part in pair if part]
    return "\n\n".join(parts) + "\n"


def _documentation() -> Sequence[str]:
    """The prose of each topic, from its middle: beginnings are headings."""
    excerpts = []
    for _, topic in sorted(topics.items()):
        prose = "\n\n".join(part for part in topic.split("\n\n") if part[:1].isalpha() and len(part) > 80)
        middle = prose.find("\n\n", len(prose) // 3) + 2
        excerpts.append(prose[middle : middle + EXCERPT_CHARACTERS].rpartition(" ")[0])
    return [excerpt for excerpt in excerpts if excerpt]


def _answers() -> Sequence[str]:
    """Three questions with their answers each."""
    lines = [f"{item['prompt']}\n{item['answer']}" for item in json.loads(ANSWERS.read_text())]
    return ["\n\n".join(lines[first : first + 3]) for first in range(0, len(lines), 3)]
