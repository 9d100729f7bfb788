"""Tokenizers from GGUF metadata: what it says is done, and what it lies about is refused."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference_svc.tokenization.errors import InvalidText, InvalidTokenId, UnsupportedTokenizer, WrongVocabularySize
from inference_svc.tokenization.gguf_tokenizer import tokenizer_from_gguf
from inference_svc.tokenization.tokenizer import ModelTokenizer
from inference_svc.weights.errors import MalformedFile
from inference_svc.weights.gguf import GgufFile
from inference_svc.weights.gguf_header import MetadataValue

Metadata = dict[str, MetadataValue]


def gguf_of(metadata: Metadata) -> GgufFile:
    return GgufFile(Path("small.gguf"), metadata, {})


def test_merges_control_tokens_and_user_defined_tokens_are_honoured(small_tokenizer: ModelTokenizer) -> None:
    ids = small_tokenizer.encode("he he</s><think>")
    assert ids == [256, 257, 259, 260]
    assert small_tokenizer.decode(ids, skip_special_tokens=False) == "he he</s><think>"
    assert small_tokenizer.decode(ids, skip_special_tokens=True) == "he he<think>"
    assert (small_tokenizer.vocab_size, small_tokenizer.bos_token_id) == (261, 258)
    assert small_tokenizer.eos_token_ids == {259}


def test_tokens_around_a_text_are_added_if_the_file_asks_and_the_caller_agrees(small_metadata: Metadata) -> None:
    small_metadata |= {"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.add_eos_token": True}
    tokenizer = tokenizer_from_gguf(gguf_of(small_metadata))
    assert tokenizer.encode("he") == [258, 256, 259]
    assert tokenizer.encode("he", add_special_tokens=False) == [256]


def test_end_of_turn_and_end_of_message_end_an_answer_too(small_metadata: Metadata) -> None:
    small_metadata |= {"tokenizer.ggml.eot_token_id": 7, "tokenizer.ggml.eom_token_id": 8}
    assert tokenizer_from_gguf(gguf_of(small_metadata)).eos_token_ids == {7, 8, 259}


def test_the_token_added_after_a_text_is_the_end_of_text_and_no_other(small_metadata: Metadata) -> None:
    small_metadata |= {"tokenizer.ggml.eot_token_id": 7, "tokenizer.ggml.add_eos_token": True}
    assert tokenizer_from_gguf(gguf_of(small_metadata)).encode("he") == [256, 259]


@pytest.mark.parametrize("token_id", [-1, 261, 2**32])
def test_an_unknown_id_is_refused_by_its_number(small_tokenizer: ModelTokenizer, token_id: int) -> None:
    with pytest.raises(InvalidTokenId, match=str(token_id)):
        small_tokenizer.decode([256, token_id], skip_special_tokens=True)
    with pytest.raises(InvalidTokenId, match="0 to 260"):
        small_tokenizer.token_bytes(token_id)


def test_a_lone_surrogate_is_refused(small_tokenizer: ModelTokenizer) -> None:
    with pytest.raises(InvalidText, match="surrogate"):
        small_tokenizer.encode("a\ud800")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("tokenizer.ggml.tokens", []),
        ("tokenizer.ggml.tokens", "abc"),
        ("tokenizer.ggml.tokens", [1, 2]),
        ("tokenizer.ggml.tokens", ["h"] * 261),
        ("tokenizer.ggml.token_type", [1]),
        ("tokenizer.ggml.token_type", []),
        ("tokenizer.ggml.token_type", [1.0] * 261),
        ("tokenizer.ggml.merges", ["he"]),
        ("tokenizer.ggml.merges", ["h zz"]),
        ("tokenizer.ggml.merges", ["h h"]),
        ("tokenizer.ggml.merges", ["h e e"]),
        ("tokenizer.ggml.merges", 3),
        ("tokenizer.ggml.bos_token_id", 261),
        ("tokenizer.ggml.eos_token_id", -1),
        ("tokenizer.ggml.eos_token_id", True),
        ("tokenizer.ggml.eot_token_id", "x"),
        ("tokenizer.ggml.add_bos_token", 1),
        ("tokenizer.ggml.model", 7),
        ("tokenizer.chat_template", ["x"]),
    ],
)
def test_a_key_that_makes_no_sense_is_refused_by_name(small_metadata: Metadata, key: str, value: Any) -> None:
    with pytest.raises(MalformedFile, match=key):
        tokenizer_from_gguf(gguf_of(small_metadata | {key: value}))


@pytest.mark.parametrize("key", ["tokenizer.ggml.tokens", "tokenizer.ggml.token_type", "tokenizer.ggml.merges"])
def test_a_missing_key_is_refused_by_name(small_metadata: Metadata, key: str) -> None:
    del small_metadata[key]
    with pytest.raises(MalformedFile, match=key):
        tokenizer_from_gguf(gguf_of(small_metadata))


def test_other_kinds_of_tokenizers_are_refused_by_name(small_metadata: Metadata) -> None:
    with pytest.raises(UnsupportedTokenizer, match=r"'t5'.*'gpt2'.*'llama'"):
        tokenizer_from_gguf(gguf_of(small_metadata | {"tokenizer.ggml.model": "t5"}))
    with pytest.raises(UnsupportedTokenizer, match=r"'kimi-k2'.*llama-bpe.*smollm"):
        tokenizer_from_gguf(gguf_of(small_metadata | {"tokenizer.ggml.pre": "kimi-k2"}))
    del small_metadata["tokenizer.ggml.pre"]
    with pytest.raises(UnsupportedTokenizer, match="names no pre-tokenizer"):
        tokenizer_from_gguf(gguf_of(small_metadata))


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.sampled_from(
    ["model", "pre", "tokens", "token_type", "merges", "scores", "bos_token_id", "unknown_token_id", "add_bos_token"]
), st.one_of(
    st.none(), st.just("llama"), st.booleans(), st.integers(-5, 300), st.floats(), st.text(max_size=5),
    st.lists(st.text(max_size=4), max_size=5), st.lists(st.integers(-1, 9), max_size=5),
)))  # fmt: skip
def test_any_metadata_gives_a_tokenizer_or_a_typed_error(values: dict[str, Any]) -> None:
    metadata = {f"tokenizer.ggml.{key}": value for key, value in values.items() if value is not None}
    metadata = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "smollm"} | metadata
    with contextlib.suppress(MalformedFile, UnsupportedTokenizer):
        tokenizer_from_gguf(gguf_of(metadata)).encode("abc")


def test_added_tokens_that_end_turns_end_an_answer_without_a_key(small_metadata: Metadata) -> None:
    tokens = small_metadata["tokenizer.ggml.tokens"]
    assert isinstance(tokens, list)
    renamed: Metadata = {"tokenizer.ggml.tokens": [*map(str, tokens[:-1]), "<|eot_id|>"]}
    assert tokenizer_from_gguf(gguf_of(small_metadata | renamed)).eos_token_ids == {259, 260}


def test_a_token_to_be_added_must_be_named(small_metadata: Metadata) -> None:
    del small_metadata["tokenizer.ggml.bos_token_id"]
    small_metadata["tokenizer.ggml.add_bos_token"] = True
    with pytest.raises(MalformedFile, match=r"add_bos_token.*bos_token_id"):
        tokenizer_from_gguf(gguf_of(small_metadata))


@pytest.mark.parametrize("vocab_size", [260, 300])
def test_a_tokenizer_of_another_model_is_refused_with_both_sizes(small_metadata: Metadata, vocab_size: int) -> None:
    with pytest.raises(WrongVocabularySize, match=rf"261 tokens.*{vocab_size}"):
        tokenizer_from_gguf(gguf_of(small_metadata), vocab_size)


def test_ids_that_the_model_has_beyond_the_tokens_stand_for_nothing(small_metadata: Metadata) -> None:
    tokenizer = tokenizer_from_gguf(gguf_of(small_metadata), 270)
    assert tokenizer.vocab_size == 270
    assert tokenizer.decode([256, 269], skip_special_tokens=False) == "he"
    with pytest.raises(InvalidTokenId, match="270"):
        tokenizer.decode([270], skip_special_tokens=False)


def test_llama_bpe_takes_a_piece_that_is_a_token_whole(small_metadata: Metadata) -> None:
    # Llama 3's tokenizer.json says `ignore_merges`: its vocabulary holds tokens that no merges lead to.
    tokens = small_metadata["tokenizer.ggml.tokens"]
    assert isinstance(tokens, list)
    changed: Metadata = {
        "tokenizer.ggml.tokens": [*map(str, tokens), "zebra"],
        "tokenizer.ggml.token_type": [*[1] * 258, 3, 3, 4, 1],
    }
    ours = tokenizer_from_gguf(gguf_of(small_metadata | changed | {"tokenizer.ggml.pre": "llama-bpe"}))
    assert ours.encode("zebra", add_special_tokens=False) == [261]
    assert len(tokenizer_from_gguf(gguf_of(small_metadata | changed)).encode("zebra")) == 5
