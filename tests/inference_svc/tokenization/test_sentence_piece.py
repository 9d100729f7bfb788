"""Kind `llama`: pieces are joined as SentencePiece joins them, and what a file lacks or invents is refused."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from inference_svc.tokenization.errors import UnsupportedTokenizer
from inference_svc.tokenization.gguf_tokenizer import tokenizer_from_gguf
from inference_svc.tokenization.incremental import IncrementalDetokenizer
from inference_svc.tokenization.sentence_piece import merges_of_scores, sentence_piece_model
from inference_svc.tokenization.tokenizer import ModelTokenizer
from inference_svc.weights.errors import MalformedFile
from inference_svc.weights.gguf import GgufFile
from inference_svc.weights.gguf_header import MetadataValue

Metadata = dict[str, MetadataValue]


def of(metadata: Metadata) -> ModelTokenizer:
    return tokenizer_from_gguf(GgufFile(Path("pieces.gguf"), metadata, {}))


def joined(text: str, scores: dict[str, float]) -> list[str]:
    """SentencePiece's definition: the union of the highest score first, the leftmost of those."""
    symbols = list(text)
    while True:
        unions = [(scores[left + right], -index) for index, (left, right) in enumerate(pairwise(symbols))
                  if left + right in scores]  # fmt: skip
        if not unions:
            return symbols
        index = -max(unions)[1]
        symbols[index : index + 2] = [symbols[index] + symbols[index + 1]]


def encoded(text: str, scores: dict[str, float]) -> list[str]:
    vocabulary = {piece: index for index, piece in enumerate(scores)}
    model = sentence_piece_model(vocabulary, scores, unknown=None, falls_back_to_bytes=False)
    tokens: list[str] = Tokenizer(model).encode(text).tokens
    return tokens


@settings(max_examples=250, deadline=None)
@given(
    pieces=st.lists(st.text("abc", min_size=2, max_size=6), unique=True, max_size=20),
    texts=st.lists(st.text("abc", max_size=25), min_size=1, max_size=5),
    order=st.randoms(use_true_random=False),
)
def test_any_pieces_with_different_scores_are_joined_as_sentence_piece_does(
    pieces: list[str], texts: list[str], order: Any
) -> None:
    ranked = ["a", "b", "c", *pieces]
    order.shuffle(ranked)
    scores = {piece: float(-rank) for rank, piece in enumerate(ranked)}
    for text in texts:
        assert encoded(text, scores) == joined(text, scores)


def test_runs_of_spaces_whose_tokens_have_the_same_score_grow_from_the_left() -> None:
    # As in files whose converter did not know that they are user-defined.
    scores = {"\u2581" * count: 0.0 for count in range(2, 32)} | {"\u2581": -5.0, "a": -6.0, "\u2581a": -1.0}
    for length in range(1, 120):
        text = "\u2581" * length + "a"
        assert encoded(text, scores) == joined(text, scores), length


def test_where_no_scores_are_known_the_order_of_the_tokens_is_that_of_the_merges() -> None:
    pieces = dict.fromkeys(["a", "b", "c", "bc", "ab", "abc"], -1000.0)
    assert merges_of_scores(pieces) == [("b", "c"), ("a", "b"), ("ab", "c"), ("a", "bc")]
    assert encoded("abab", pieces) == ["ab", "ab"]


def test_a_space_is_put_before_each_part_of_a_text_and_unknown_characters_become_bytes(
    shared_pieces: ModelTokenizer,
) -> None:
    assert shared_pieces.encode("hello") == [1, 265, 266, 263]
    assert shared_pieces.encode("hé", add_special_tokens=False) == [259, 260, 3 + 0xC3, 3 + 0xA9]
    assert shared_pieces.encode("he</s>he<think> he", add_special_tokens=False) == [265, 2, 265, 267, 259, 265]
    assert shared_pieces.encode("") == [1]
    assert shared_pieces.encode("<0x0A>") == [1, 259, *(3 + byte for byte in b"<0x0A>")]


def test_no_space_is_put_there_if_the_file_says_so(pieces_metadata: Metadata) -> None:
    tokenizer = of(pieces_metadata | {"tokenizer.ggml.add_space_prefix": False, "tokenizer.ggml.add_bos_token": False})
    assert tokenizer.encode("he he") == [264, 265]
    assert tokenizer.decode([265], skip_special_tokens=True) == " he"


def test_the_space_that_was_put_before_a_text_is_not_of_it(shared_pieces: ModelTokenizer) -> None:
    for text in ("he", " he", "hello he", "", " ", "é", "<think> he"):
        assert shared_pieces.decode(shared_pieces.encode(text), skip_special_tokens=True) == text.replace(
            "<think> ", "<think>  "
        )
    # What goes on from a text keeps it.
    detokenizer = IncrementalDetokenizer(shared_pieces, continues_text=True)
    assert detokenizer.push([265]) == " he"


def test_bytes_become_characters_when_they_are_complete(shared_pieces: ModelTokenizer) -> None:
    detokenizer = IncrementalDetokenizer(shared_pieces)
    texts = [detokenizer.push([3 + byte]) for byte in "a🙂\n".encode()]
    assert texts == ["a", "", "", "", "🙂", "\n"]
    # What is no UTF-8 costs no character before it.
    assert detokenizer.push([3 + ord("b"), 3 + 0xF0]) + detokenizer.push([264]) == "b\ufffdhe"


def test_tokens_at_either_end_are_those_of_the_kind_unless_the_file_says_otherwise(pieces_metadata: Metadata) -> None:
    tokenizer = of(pieces_metadata)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_ids) == (1, frozenset({2}))
    changed: Metadata = {"tokenizer.ggml.bos_token_id": 2, "tokenizer.ggml.add_eos_token": True}
    assert of(pieces_metadata | changed).encode("he") == [2, 265, 2]


def test_phi_3_leaves_out_white_space_after_its_tokens(pieces_metadata: Metadata) -> None:
    tokens, types = pieces_metadata["tokenizer.ggml.tokens"], pieces_metadata["tokenizer.ggml.token_type"]
    assert isinstance(tokens, list)
    assert isinstance(types, list)
    changed: Metadata = {
        "tokenizer.ggml.tokens": [*map(str, tokens[:-1]), "<|end|>"],
        "tokenizer.ggml.token_type": [*(int(kind) for kind in types[:-1]), 3],
        "tokenizer.ggml.add_bos_token": False,
    }
    assert of(pieces_metadata | changed).encode("<|end|>\n  he") == [267, 259, 3 + 10, 259, 265]
    phi_3 = of(pieces_metadata | changed | {"general.architecture": "phi3"})
    assert phi_3.encode("<|end|>\n  he") == [267, 265]
    assert phi_3.encode("<s>\nhe") == [1, 259, 3 + 10, 264]
    assert phi_3.eos_token_ids == {2, 267}


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("scores", None, "scores"),
        ("scores", [1.0], "a list of 1.*not a list of 268 numbers"),
        ("scores", ["x"] * 268, "scores"),
        ("token_type", [2, 3, 3, *[6] * 255, 1, *[1] * 8, 4], "255 tokens as bytes.*'<0xFF>'"),
        ("token_type", [2, 3, 3, *[6] * 257, *[1] * 7, 4], "257 tokens as bytes"),
        ("unknown_token_id", 268, "unknown_token_id"),
        ("add_space_prefix", "yes", "add_space_prefix"),
        ("remove_extra_whitespaces", 1, "remove_extra_whitespaces"),
    ],
)
def test_a_key_that_makes_no_sense_is_refused_by_name(
    pieces_metadata: Metadata, key: str, value: Any, message: str
) -> None:
    metadata = pieces_metadata | {f"tokenizer.ggml.{key}": value}
    if value is None:
        del metadata[f"tokenizer.ggml.{key}"]
    with pytest.raises(MalformedFile, match=message):
        of(metadata)


def test_without_byte_tokens_what_is_no_piece_is_the_unknown_token(pieces_metadata: Metadata) -> None:
    tokenizer = of(pieces_metadata | {"tokenizer.ggml.token_type": [2, 3, 3, *[5] * 256, *[1] * 8, 4]})
    assert tokenizer.encode("éàhe") == [1, 259, 0, 264]
    assert tokenizer.decode([3 + 10], skip_special_tokens=True) == "<0x0A>"


def test_a_tokenizer_that_rewrites_characters_is_refused_by_name(pieces_metadata: Metadata) -> None:
    with pytest.raises(UnsupportedTokenizer, match="precompiled_charsmap"):
        of(pieces_metadata | {"tokenizer.ggml.precompiled_charsmap": [0, 1, 2]})
