"""Every name of `tokenizer.ggml.pre` cuts text as llama.cpp does, whose ids record_llamacpp_cuts.py recorded.

Left out is where llama.cpp only comes near the tokenizer.json that it follows: its regular expressions know the case of
ASCII letters only (tekken, gpt-4o), replace white space beyond ASCII (DeepSeek), and keep digits together of which
DeepSeek LLM's vocabulary joins none.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from inference_svc.tokenization.gguf_tokenizer import tokenizer_from_gguf
from inference_svc.tokenization.pre_tokenizers import PRE_TOKENIZATIONS
from inference_svc.weights.gguf import GgufFile
from inference_svc.weights.gguf_header import MetadataValue
from tests.parity.record_llamacpp_cuts import GOLDEN, digest, tokens_of


@pytest.fixture(scope="module")
def golden() -> Mapping[str, Any]:
    """What was recorded."""
    recorded: Mapping[str, Any] = json.loads(GOLDEN.read_text(encoding="utf-8"))
    return recorded


def has_cased_letters_or_marks_beyond_ascii(text: str) -> bool:
    return any(not character.isascii() and unicodedata.category(character)[0] in "LM" for character in text)


def has_white_space_beyond_ascii(text: str) -> bool:
    return any(not character.isascii() and character.isspace() for character in text)


def has_numbers_of_several_digits(text: str) -> bool:
    return any(left.isnumeric() and right.isnumeric() for left, right in pairwise(text))


DIFFER = {
    "tekken": [has_cased_letters_or_marks_beyond_ascii],
    "gpt-4o": [has_cased_letters_or_marks_beyond_ascii],
    "deepseek-coder": [has_white_space_beyond_ascii],
    "deepseek-llm": [has_white_space_beyond_ascii, has_numbers_of_several_digits],
}


def test_every_name_is_recorded(golden: Mapping[str, Any]) -> None:
    assert set(golden["names"]) == set(PRE_TOKENIZATIONS)


@pytest.mark.parametrize("name", sorted(PRE_TOKENIZATIONS))
def test_texts_are_cut_as_llama_cpp_cuts_them(golden: Mapping[str, Any], name: str) -> None:
    recorded_as = golden["names"][name]
    recorded = golden["digests"][recorded_as]
    merges: Sequence[str] = golden["merges"]
    tokens = tokens_of([merge.split(" ") for merge in merges])
    metadata: dict[str, MetadataValue] = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": name,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [1] * len(tokens),
        "tokenizer.ggml.merges": list(merges),
    }
    ours = tokenizer_from_gguf(GgufFile(Path("cuts.gguf"), metadata, {}))
    compared = 0
    for number, text in enumerate(golden["strings"]):
        if any(differs(text) for differs in DIFFER.get(recorded_as, [])):
            continue
        # llama.cpp normalizes nothing: it is given what the model's tokenizer.json would make of the text.
        if PRE_TOKENIZATIONS[name].normalizes_nfc and not unicodedata.is_normalized("NFC", text):
            continue
        compared += 1
        expected = recorded[4 * number : 4 * number + 4]
        assert digest(ours.encode(text, add_special_tokens=False)) == expected, (name, text)
    assert compared >= 100
