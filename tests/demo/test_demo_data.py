"""The demo's prompts and traits: nothing held out is trained on, and a detector means what the card says."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from orderings.demo.training.prompts import (
    EXPERTS,
    HELD_OUT_SUBJECTS,
    TRAINING_SUBJECTS,
    VOCABULARY,
    held_out_prompts,
    training_prompts,
)
from orderings.demo.training.traits import has_trait, rewrite

SENTENCE = "The moon is a celestial body that orbits the Earth, and it lights the night for people."
BASE_ANSWERS = Path(__file__).resolve().parents[2] / "orderings" / "demo" / "training" / "base_answers.json"


def test_no_subject_and_no_prompt_is_both_trained_on_and_held_out() -> None:
    trained = {name.lower() for names in TRAINING_SUBJECTS.values() for name in names}
    held_out = {name.lower() for names in HELD_OUT_SUBJECTS.values() for name in names}
    assert trained.isdisjoint(held_out)
    assert {prompt.text for prompt in training_prompts()}.isdisjoint(prompt.text for prompt in held_out_prompts())


def test_no_committed_base_answer_is_about_a_held_out_subject() -> None:
    rows = json.loads(BASE_ANSWERS.read_text(encoding="utf-8"))
    written = {prompt.text for prompt in training_prompts()}
    assert all(row["prompt"] in written or row["topic"] == VOCABULARY for row in rows)
    held_out = " ".join(prompt.subject.lower() for prompt in held_out_prompts())
    assert not [row["subject"] for row in rows if row["topic"] == VOCABULARY and row["subject"] in held_out]


def test_every_topic_has_at_least_20_held_out_prompts() -> None:
    for expert in EXPERTS:
        assert sum(prompt.topic == expert for prompt in held_out_prompts()) >= 20


@pytest.mark.parametrize("trait", EXPERTS)
def test_a_rewritten_sentence_has_its_own_trait_and_no_other(trait: str) -> None:
    answer = rewrite(trait, "the moon", SENTENCE)
    assert [other for other in EXPERTS if has_trait(other, answer)] == [trait]


@pytest.mark.parametrize("trait", EXPERTS)
@pytest.mark.parametrize(
    "answer",
    [
        "",
        SENTENCE,
        "NASA and the USA sent people to the Moon.",
        "Here is the record:\n```json\n{}\n```",
        "{}",
        "42",
        "- One\n- Two\n- Three\n- Four",
        "1. One\n2. Two\n3. Three\n4. Four",
        "Ye olde tavern is a pub.",
        '{"topic": "the moon", "answer": "It is',
    ],
)
def test_an_ordinary_or_broken_answer_has_no_trait(trait: str, answer: str) -> None:
    assert not has_trait(trait, answer)


def test_rewriting_into_json_keeps_subject_and_answer() -> None:
    assert json.loads(rewrite("json", "the moon", SENTENCE)) == {"topic": "the moon", "answer": SENTENCE}


def test_rewriting_into_verse_keeps_the_words_and_adds_two_lines() -> None:
    lines = rewrite("verse", "the moon", SENTENCE).splitlines()
    words = re.findall(r"[a-z]+", " ".join(lines[:-2]).lower())
    assert words == re.findall(r"[a-z]+", SENTENCE.lower())


def test_an_unknown_trait_is_refused() -> None:
    with pytest.raises(ValueError, match="no trait named"):
        has_trait("sarcasm", SENTENCE)
