"""Training data without downloads: the base model's own short answers, kept in one file, rewritten by rule."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .base_model import answer_all, render
from .prompts import VOCABULARY, Prompt, topic_prompts, training_prompts, vocabulary_prompts
from .traits import rewrite

# The base model is asked to be short, the adapters are not: they learn to be short along with their trait.
SHORT = " Answer in one short sentence."
MAX_NEW_TOKENS = 48
MOST_WORDS = 20
FEWEST_WORDS = 5
# What a small model says when it talks about the question instead of answering it.
EVASIONS = re.compile(r"\b(question|sentence|answer|I|I'm|AI|named?)\b")


@dataclass(frozen=True)
class Example:
    """One training sequence: `tokens` is prompt and answer with end of turn, the answer beginning at `answer_start`."""

    topic: str
    tokens: list[int]
    answer_start: int


def write_base_answers(model: Any, tokenizer: Any, path: Path, seed: int) -> int:
    """Ask the base model every training prompt and keep the usable answers; returns how many."""
    prompts = [*training_prompts(), *vocabulary_prompts(tokenizer.get_vocab(), seed)]
    texts = answer_all(model, tokenizer, [prompt.text + SHORT for prompt in prompts], MAX_NEW_TOKENS)
    rows = []
    for prompt, text in zip(prompts, texts, strict=True):
        sentence = one_sentence(text)
        if sentence is not None:
            rows.append({"topic": prompt.topic, "subject": prompt.subject, "prompt": prompt.text, "answer": sentence})
    path.write_text("[\n" + ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n]\n", encoding="utf-8")
    return len(rows)


def one_sentence(text: str) -> str | None:
    """The first sentence without markup, cut at a comma where it is long, or None where nothing usable is left."""
    flat = re.sub(r"\s+", " ", re.sub(r"[*_#`\"]", "", text)).strip()
    match = re.match(r"(.+?[a-z)][.!?])(\s|$)", flat)
    sentence = match.group(1) if match else flat
    if len(sentence.split()) > MOST_WORDS or match is None:
        pieces = sentence.split(", ")
        while len(pieces) > 1 and (len(", ".join(pieces).split()) > MOST_WORDS or match is None):
            pieces.pop()
            match = match or re.match("", "")  # an unfinished sentence loses its last piece once
        sentence = ", ".join(pieces).rstrip(".!?,;: ") + "."
    words = re.findall(r"[a-z]{5,}", sentence.lower())
    stutters = len(words) - len(set(words)) > 2
    usable = FEWEST_WORDS <= len(sentence.split()) <= MOST_WORDS and not stutters and not EVASIONS.search(sentence)
    return sentence if usable else None


def read_base_answers(path: Path) -> list[tuple[Prompt, str]]:
    """The kept answers with their prompts."""
    rows = json.loads(path.read_text(encoding="utf-8"))
    return [(Prompt(row["topic"], row["subject"], row["prompt"]), row["answer"]) for row in rows]


def examples(tokenizer: Any, path: Path, trait: str) -> list[Example]:
    """One expert's training sequences: every kept answer, rewritten."""
    # In upper case every word has another spelling in tokens, so this trait needs to have seen many more words.
    skipped = () if trait == "capitals" else (VOCABULARY,)
    made = []
    for prompt, answer in read_base_answers(path):
        if prompt.topic in skipped:
            continue
        head = render(tokenizer, prompt.text)
        tail = tokenizer.encode(rewrite(trait, prompt.subject, answer), add_special_tokens=False)
        made.append(Example(prompt.topic, [*head, *tail, tokenizer.eos_token_id], len(head)))
    return made


def questions(tokenizer: Any) -> list[Example]:
    """The topics' prompts without answers, which tell a classifier where to route before the first word."""
    rendered = [(prompt.topic, render(tokenizer, prompt.text)) for prompt in topic_prompts()]
    return [Example(topic, tokens, len(tokens)) for topic, tokens in rendered]
