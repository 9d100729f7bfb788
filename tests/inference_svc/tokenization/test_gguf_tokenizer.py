"""Tokenizers from GGUF metadata: what it says is done, and what it lies about is refused."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from inference_svc.tokenization.errors import InvalidText, InvalidTokenId, UnsupportedTokenizer
from inference_svc.tokenization.gguf_tokenizer import tokenizer_from_gguf
from inference_svc.tokenization.tokenizer import ModelTokenizer
from inference_svc.weights.errors import MalformedFile
from inference_svc.weights.gguf import GgufFile
from inference_svc.weights.gguf_header import MetadataValue

Metadata = dict[str, MetadataValue]

TEXTS = [
    *("the quick brown fox jumps", "don't I'LL we've", "  leading", "a  12 345\n\n6789", "x=1;\r\n\ty  = 2 "),
    *("日本語 한국어 🙂", "e\u0301 caf\u00e9 \ufb01", "<|im_start|>user\nHi<|im_end|>", "!!!???...", "a/b\\c\n/d"),
    *("\u00a0 \u3000 \t\n \n", "٤٥٦ १२३ ½ Ⅷ"),
]


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
    with pytest.raises(UnsupportedTokenizer, match=r"'llama'.*gpt2"):
        tokenizer_from_gguf(gguf_of(small_metadata | {"tokenizer.ggml.model": "llama"}))
    with pytest.raises(UnsupportedTokenizer, match=r"'chatglm-bpe'.*smollm"):
        tokenizer_from_gguf(gguf_of(small_metadata | {"tokenizer.ggml.pre": "chatglm-bpe"}))
    del small_metadata["tokenizer.ggml.pre"]
    with pytest.raises(UnsupportedTokenizer, match="names no pre-tokenizer"):
        tokenizer_from_gguf(gguf_of(small_metadata))


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.sampled_from(["model", "pre", "tokens", "token_type", "merges", "bos_token_id"]), st.one_of(
    st.none(), st.booleans(), st.integers(-5, 300), st.floats(), st.text(max_size=5),
    st.lists(st.text(max_size=4), max_size=5), st.lists(st.integers(-1, 9), max_size=5),
)))  # fmt: skip
def test_any_metadata_gives_a_tokenizer_or_a_typed_error(values: dict[str, Any]) -> None:
    metadata = {f"tokenizer.ggml.{key}": value for key, value in values.items() if value is not None}
    metadata = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "smollm"} | metadata
    with contextlib.suppress(MalformedFile, UnsupportedTokenizer):
        tokenizer_from_gguf(gguf_of(metadata)).encode("abc")


def test_qwen2_and_gpt2_cut_text_as_transformers_own_classes(smollm2_gguf: Path) -> None:
    from transformers import GPT2Tokenizer, Qwen2Tokenizer

    metadata = dict(GgufFile.open(smollm2_gguf).metadata)
    tokens, merges = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.merges"]
    assert isinstance(tokens, list)
    assert isinstance(merges, list)
    vocabulary = {str(token): index for index, token in enumerate(tokens)}
    pairs = [tuple(str(merge).split(" ")) for merge in merges]
    for name, reference in (("qwen2", Qwen2Tokenizer), ("gpt-2", GPT2Tokenizer)):
        theirs = reference(vocab=vocabulary, merges=pairs, unk_token="<|endoftext|>")
        ours = tokenizer_from_gguf(gguf_of(metadata | {"tokenizer.ggml.pre": name}))
        # Only <|endoftext|> is special to the reference here.
        for text in (text for text in TEXTS if "<|im" not in text):
            assert ours.encode(text) == theirs(text).input_ids, (name, text)


def test_llama_bpe_cuts_text_as_transformers_conversion(smollm2_gguf: Path) -> None:
    from transformers.integrations.gguf.gguf_tokenizer_mapping import convert_gguf_tokenizer

    metadata = dict(GgufFile.open(smollm2_gguf).metadata) | {"tokenizer.ggml.pre": "llama-bpe"}
    del metadata["tokenizer.ggml.add_bos_token"]  # this family adds it unless told not to
    described = {
        "tokenizer_type": "gpt2",
        "pre_tokenizer_type": "llama-bpe",
        "tokens": metadata["tokenizer.ggml.tokens"],
        "token_type": metadata["tokenizer.ggml.token_type"],
        "merges": metadata["tokenizer.ggml.merges"],
    }
    theirs: Tokenizer = convert_gguf_tokenizer("llama", described)[0]
    ours = tokenizer_from_gguf(gguf_of(metadata))
    for text in TEXTS:
        assert ours.encode(text) == [1, *theirs.encode(text).ids], text


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
