"""Text token by token is the text of all tokens; stop strings end it wherever it is cut."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference_svc.tokenization.errors import InvalidTokenId
from inference_svc.tokenization.gguf_tokenizer import tokenizer_from_gguf
from inference_svc.tokenization.incremental import IncrementalDetokenizer, StopStrings
from inference_svc.tokenization.tokenizer import ModelTokenizer
from inference_svc.weights.gguf import GgufFile


@pytest.fixture(scope="module")
def smollm2(smollm2_gguf: Path) -> ModelTokenizer:
    """The real tokenizer."""
    return tokenizer_from_gguf(GgufFile.open(smollm2_gguf))


def in_pieces(tokenizer: ModelTokenizer, ids: list[int], skips: bool) -> list[str]:
    detokenizer = IncrementalDetokenizer(tokenizer, skip_special_tokens=skips)
    return [*(detokenizer.push([token_id]) for token_id in ids), detokenizer.finish()]


def test_a_character_is_held_back_until_its_last_byte(smollm2: ModelTokenizer) -> None:
    ids = smollm2.encode("a🙂é日")
    pieces = in_pieces(smollm2, ids, skips=True)
    assert len(ids) > 4
    assert [piece for piece in pieces if piece] == ["a", "🙂", "é", "日"]


def test_a_character_that_stays_incomplete_ends_as_a_replacement(smollm2: ModelTokenizer) -> None:
    ids = smollm2.encode("a🙂")[:-1]
    pieces = in_pieces(smollm2, ids, skips=True)
    assert "".join(pieces[:-1]) == "a"
    assert pieces[-1] == "\ufffd"


def test_special_tokens_are_shown_only_on_request(smollm2: ModelTokenizer) -> None:
    ids = smollm2.encode("<|im_start|>a<|im_end|>")
    assert "".join(in_pieces(smollm2, ids, skips=True)) == "a"
    assert "".join(in_pieces(smollm2, ids, skips=False)) == "<|im_start|>a<|im_end|>"


def test_an_unknown_id_is_refused(smollm2: ModelTokenizer) -> None:
    with pytest.raises(InvalidTokenId, match="49152"):
        IncrementalDetokenizer(smollm2).push([49_152])


@settings(max_examples=300, deadline=None)
@given(ids=st.lists(st.integers(0, 49_151), max_size=30), skips=st.booleans())
def test_pieces_of_any_ids_make_the_text_of_all_of_them(smollm2: ModelTokenizer, ids: list[int], skips: bool) -> None:
    assert "".join(in_pieces(smollm2, ids, skips)) == smollm2.decode(ids, skip_special_tokens=skips)


# Tokens 0 to 255 of the small tokenizer are single bytes: every way to break UTF-8.
@settings(max_examples=500, deadline=None)
@given(ids=st.lists(st.one_of(st.integers(0, 255), st.integers(0, 260)), max_size=12))
def test_pieces_of_any_bytes_make_the_text_of_all_of_them(ids: list[int], shared_small: ModelTokenizer) -> None:
    pieces = in_pieces(shared_small, ids, skips=False)
    assert "".join(pieces) == shared_small.decode(ids, skip_special_tokens=False)


# Ids 3 to 258 are the bytes of the tokenizer of pieces, 259 the space, 267 a token that a user defined.
@settings(max_examples=300, deadline=None)
@given(ids=st.lists(st.one_of(st.integers(0, 267), st.integers(259, 267)), max_size=12), skips=st.booleans())
def test_pieces_of_any_sentence_pieces_make_the_text_of_all_of_them(
    ids: list[int], skips: bool, shared_pieces: ModelTokenizer
) -> None:
    shown = in_pieces(shared_pieces, ids, skips)
    assert "".join(shown) == shared_pieces.decode(ids, skip_special_tokens=skips)
    kept = [id_ for id_ in ids if not (skips and id_ < 3)]
    spelled = b"".join(shared_pieces.token_bytes(id_) for id_ in kept)
    assert "".join(shown) == spelled.removeprefix(b" ").decode("utf-8", "replace")


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=20))
def test_valid_text_never_shows_a_replacement(shared_small: ModelTokenizer, text: str) -> None:
    ids = shared_small.encode(text)
    pieces = in_pieces(shared_small, ids, skips=False)
    assert "".join(pieces) == text
    assert "".join(pieces).count("\ufffd") == text.count("\ufffd")


def ends_first(text: str, stops: list[str]) -> tuple[str, str | None]:
    """The definition: read on until a stop string ends; of several that end there, the longest."""
    for end in range(1, len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            longest = max(ending, key=len)
            return text[: end - len(longest)], longest
    return text, None


ALPHABET = st.text("ab🙂", min_size=1, max_size=5)


@settings(max_examples=1_000, deadline=None)
@given(pieces=st.lists(st.text("ab🙂", max_size=6), max_size=8), stops=st.lists(ALPHABET, max_size=4))
def test_the_result_is_that_of_the_whole_text(pieces: list[str], stops: list[str]) -> None:
    stopping = StopStrings(stops)
    shown, matched = "", None
    expected, expected_match = ends_first("".join(pieces), stops)
    for piece in pieces:
        result = stopping.push(piece)
        shown += result.emit
        matched = result.matched
        # What is shown is never taken back.
        assert expected.startswith(shown)
    if matched is None:
        shown += stopping.finish()
    assert (shown, matched) == (expected, expected_match)


@settings(max_examples=300, deadline=None)
@given(pieces=st.lists(st.text("ab", max_size=4), max_size=8), stops=st.lists(ALPHABET, min_size=1, max_size=3))
def test_nothing_is_held_back_that_cannot_become_a_stop_string(pieces: list[str], stops: list[str]) -> None:
    stopping = StopStrings(stops)
    text, shown = "", ""
    for piece in pieces:
        text += piece
        result = stopping.push(piece)
        shown += result.emit
        if result.matched is not None:
            return
        held = text[len(shown) :]
        assert not held or any(len(stop) > len(held) and stop.startswith(held) for stop in stops)


def test_after_a_match_nothing_more_is_shown() -> None:
    stopping = StopStrings(["\n\n"])
    assert stopping.push("one\n").emit == "one"
    assert stopping.push("\ntwo").matched == "\n\n"
    assert stopping.push("three").emit == ""
    assert stopping.finish() == ""


def test_without_stop_strings_text_passes_at_once() -> None:
    assert StopStrings([]).push("abc").emit == "abc"
