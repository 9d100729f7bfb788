"""Tokenizers from GGUF metadata and from folders equal their originals on 10,000 strings per family.

Byte-level originals are transformers' own classes and its own table of splits, and for the rest the pre-tokenizers of
their tokenizer.json. SentencePiece's originals are models of SentencePiece itself; it does not read special tokens in
a text, so for texts with those the original is the tokenizer.json that transformers' rules make of the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, pre_tokenizers, processors
from transformers import GPT2Tokenizer, PreTrainedTokenizerFast, Qwen2Tokenizer
from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

from inference_svc.tokenization.folder_tokenizer import tokenizer_from_folder
from inference_svc.tokenization.gguf_tokenizer import tokenizer_from_gguf
from inference_svc.tokenization.incremental import IncrementalDetokenizer
from inference_svc.tokenization.tokenizer import ModelTokenizer
from tests.parity.tokenizer_originals import (
    byte_level,
    byte_level_metadata,
    gguf_of,
    hugging_face,
    sentence_piece,
    sentence_piece_metadata,
)
from tests.parity.tokenizer_strings import NUM_STRINGS, varied_strings


def split(*patterns: str) -> list[pre_tokenizers.PreTokenizer]:
    return [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns]


def steps(*of: pre_tokenizers.PreTokenizer) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(list(of))


BYTES_ONLY = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
GPT_2 = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
DIGITS = pre_tokenizers.Digits(individual_digits=True)
HAN_TO_HANGUL = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"


def of_class(name: str) -> Tokenizer:
    """The way of cutting of a class of transformers."""
    kind = {"gpt-2": GPT2Tokenizer, "qwen2": Qwen2Tokenizer}[name]
    backend = kind(vocab={"<|endoftext|>": 0}, merges=[], unk_token="<|endoftext|>").backend_tokenizer
    return byte_level(backend.pre_tokenizer, normalizer=backend.normalizer)


ORIGINALS = {
    "gpt-2": lambda: of_class("gpt-2"),
    "qwen2": lambda: of_class("qwen2"),
    "llama-bpe": lambda: byte_level(
        steps(*split(GGUF_PRE_TOKENIZER_SPLITS["llama-bpe"]), BYTES_ONLY), ignores_merges=True
    ),
    "tekken": lambda: byte_level(steps(*split(GGUF_PRE_TOKENIZER_SPLITS["tekken"]), BYTES_ONLY), ignores_merges=True),
    "gpt-4o": lambda: byte_level(steps(*split(GGUF_PRE_TOKENIZER_SPLITS["gpt-4o"]), BYTES_ONLY)),
    "starcoder": lambda: byte_level(steps(DIGITS, GPT_2)),
    "deepseek-coder": lambda: byte_level(
        steps(*split(r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", HAN_TO_HANGUL), DIGITS, BYTES_ONLY)
    ),
}


@pytest.mark.parametrize("pre", ORIGINALS)
def test_ids_and_texts_of_a_byte_level_family_are_those_of_the_original(pre: str) -> None:
    original = ORIGINALS[pre]()
    ours = tokenizer_from_gguf(gguf_of(byte_level_metadata(original, pre)), original.get_vocab_size())
    strings = varied_strings()
    assert len(set(strings)) >= 0.9 * NUM_STRINGS
    for text, expected in zip(strings, original.encode_batch(strings), strict=True):
        assert ours.encode(text) == expected.ids, repr(text)
    check_texts(ours, original, strings[:400])


def check_texts(ours: ModelTokenizer, original: Tokenizer, strings: Sequence[str]) -> None:
    """Decoded whole and token by token, with special tokens and without."""
    for text in strings:
        ids = ours.encode(text)
        for skips in (False, True):
            expected = original.decode(ids, skip_special_tokens=skips)
            assert ours.decode(ids, skip_special_tokens=skips) == expected, repr(text)
            detokenizer = IncrementalDetokenizer(ours, skips)
            assert "".join(detokenizer.push([id_]) for id_ in ids) + detokenizer.finish() == expected, repr(text)


SPECIAL = {"normalized": False, "special": True}
LLAMA_ADDED = [AddedToken(text, **SPECIAL) for text in ("<unk>", "<s>", "</s>", "[INST]", "[/INST]")]
PHI_3_ADDED = [
    *(AddedToken(text, **SPECIAL) for text in ("<unk>", "<s>", "<|endoftext|>")),
    *(AddedToken(text, **SPECIAL, rstrip=True) for text in ("</s>", "[INST]", "[/INST]")),
    *(AddedToken(text, **SPECIAL, rstrip=True) for text in ("<|user|>", "<|end|>", "<|assistant|>")),
]
GEMMA_ADDED = [
    *(AddedToken(text, **SPECIAL) for text in ("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>")),
    *(AddedToken(text, normalized=False) for text in ("<table>", "</s>", "\n\n", "\n\n\n")),
]
GEMMA_SPACES = ["▁" * count for count in range(2, 17)]


def flags(added: Sequence[AddedToken]) -> dict[str, bool]:
    """Which are special."""
    return {token.content: token.special for token in added}


def gemma_of_gguf() -> ModelTokenizer:
    original = sentence_piece("gemma")
    added = flags(GEMMA_ADDED) | dict.fromkeys(GEMMA_SPACES, False)
    return tokenizer_from_gguf(
        gguf_of(sentence_piece_metadata(original, added, add_space_prefix=False)), original.vocab_size()
    )


def llama_of_gguf(family: str = "llama", **keys: bool) -> ModelTokenizer:
    original = sentence_piece(family)
    return tokenizer_from_gguf(gguf_of(sentence_piece_metadata(original, {}, **keys)), original.vocab_size())


@pytest.mark.parametrize("family", ["llama", "spaces", "gemma"])
def test_ids_of_a_sentence_piece_family_are_those_of_sentence_piece(family: str) -> None:
    original = sentence_piece(family)
    ours = gemma_of_gguf() if family == "gemma" else llama_of_gguf(family, remove_extra_whitespaces=family == "spaces")
    control = [original.id_to_piece(id_) for id_ in range(original.vocab_size()) if original.is_control(id_)]
    # SentencePiece ends a text at NUL, knows no control tokens in texts, and takes U+2581 for a space, which matters
    # where spaces are dropped, and where tokens are spaces: GGUF holds those as spaces.
    left_out = ("\0", "<unk>", *control, *([] if family == "llama" else ["▁"]))
    strings = varied_strings(without=left_out)
    assert len(strings) == NUM_STRINGS
    for text, expected in zip(strings, original.encode(strings), strict=True):
        assert ours.encode(text) == expected, repr(text)
    for text, expected in zip(strings[:3_000], original.decode(original.encode(strings[:3_000])), strict=True):
        assert ours.decode(ours.encode(text), skip_special_tokens=False) == expected, repr(text)


@pytest.mark.parametrize("family", ["llama", "phi3", "gemma"])
def test_ids_and_texts_of_a_sentence_piece_family_are_those_of_its_tokenizer_json(family: str) -> None:
    original = sentence_piece("gemma" if family == "gemma" else "llama")
    added = {"llama": LLAMA_ADDED, "phi3": PHI_3_ADDED, "gemma": GEMMA_ADDED}[family]
    converted = hugging_face(original, added, adds_prefix=family != "gemma")
    if family == "gemma":
        ours = gemma_of_gguf()
    else:
        metadata = sentence_piece_metadata(original, flags(added)) | {"general.architecture": family}
        ours = tokenizer_from_gguf(gguf_of(metadata), converted.get_vocab_size())
    strings = varied_strings(without=["▁"] if family == "gemma" else [])
    assert len(strings) == NUM_STRINGS
    for text, expected in zip(strings, converted.encode_batch(strings, add_special_tokens=False), strict=True):
        assert ours.encode(text) == expected.ids, repr(text)
    check_texts(ours, converted, strings[:600])


def of_folder(family: str) -> Tokenizer:
    """An original as it is in a tokenizer.json."""
    if family in ORIGINALS:
        return ORIGINALS[family]()
    added = {"llama": LLAMA_ADDED, "phi3": PHI_3_ADDED, "gemma": GEMMA_ADDED}[family]
    original = sentence_piece("gemma" if family == "gemma" else "llama")
    return hugging_face(original, added, adds_prefix=family != "gemma")


@pytest.mark.parametrize("family", ["qwen2", "llama-bpe", "llama", "phi3", "gemma"])
def test_ids_and_texts_of_a_folder_are_those_of_transformers(family: str, tmp_path: Path) -> None:
    original = of_folder(family)
    bos, eos = ("<|im_start|>", "<|im_end|>") if family in ORIGINALS else ("<s>", "</s>")
    if family == "gemma":
        bos, eos = "<bos>", "<eos>"
    bos_id = original.token_to_id(bos)
    if family in ("llama-bpe", "gemma"):
        added = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, bos_id)])
        byte_level = processors.ByteLevel(trim_offsets=False)
        original.post_processor = processors.Sequence([byte_level, added]) if family == "llama-bpe" else added
    PreTrainedTokenizerFast(tokenizer_object=original, bos_token=bos, eos_token=eos).save_pretrained(tmp_path)
    theirs = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    ours = tokenizer_from_folder(tmp_path, len(theirs))
    assert ours.bos_token_id == bos_id
    assert theirs.eos_token_id in ours.eos_token_ids
    strings = varied_strings()
    assert len(strings) == NUM_STRINGS
    for text, expected in zip(strings, theirs(list(strings)).input_ids, strict=True):
        assert ours.encode(text) == expected, repr(text)
    assert (ours.encode("a")[0] == bos_id) is (family in ("llama-bpe", "gemma"))
    check_texts(ours, original, strings[:300])
