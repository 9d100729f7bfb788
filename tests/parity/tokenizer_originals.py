"""Small originals of the families of tokenizers, and what llama.cpp's converter makes of them.

Byte-level: one vocabulary, trained over uncut text, so that its merges run across words, digits, marks and line ends;
every cut that a pre-tokenizer makes or leaves out changes ids. SentencePiece: trained by its own trainer with the
settings of Llama 2 and of Gemma.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import sentencepiece
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers.tokenization_utils_base import generate_merges

from inference_svc.weights.gguf import GgufFile
from inference_svc.weights.gguf_header import MetadataValue
from tests.parity.tokenizer_strings import corpus

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
CONTROL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
USER_TOKENS = ("<file_sep>",)


@cache
def _byte_level_training() -> Mapping[str, Any]:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    trainer = trainers.BpeTrainer(
        vocab_size=4_000, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    trained: Mapping[str, Any] = json.loads(tokenizer.to_str())["model"]
    return trained


def byte_level(
    pre_tokenizer: pre_tokenizers.PreTokenizer,
    *,
    normalizer: normalizers.Normalizer | None = None,
    ignores_merges: bool = False,
) -> Tokenizer:
    """An original with this way of cutting; the tokens CONTROL_TOKENS and USER_TOKENS added."""
    model = _byte_level_training()
    merges = [tuple(merge) for merge in model["merges"]]
    tokenizer = Tokenizer(models.BPE(vocab=model["vocab"], merges=merges, ignore_merges=ignores_merges))
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in CONTROL_TOKENS])
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in USER_TOKENS])
    return tokenizer


def byte_level_metadata(tokenizer: Tokenizer, pre: str) -> dict[str, MetadataValue]:
    """As llama.cpp's converter writes it (`get_vocab_base`, `SpecialVocab`)."""
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    added = tokenizer.get_added_tokens_decoder()
    types = [
        NORMAL if index not in added else CONTROL if added[index].special else USER_DEFINED for _, index in vocabulary
    ]
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    return {
        "general.architecture": "llama",
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": [token for token, _ in vocabulary],
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": [" ".join(pair) for pair in merges],
        "tokenizer.ggml.add_bos_token": False,
    }


LLAMA_SETTINGS: Mapping[str, Any] = {
    "unk_id": 0,
    "bos_id": 1,
    "eos_id": 2,
    "pad_id": -1,
    "add_dummy_prefix": True,
    "control_symbols": ["[INST]", "[/INST]"],
}
GEMMA_SETTINGS: Mapping[str, Any] = {
    "pad_id": 0,
    "eos_id": 1,
    "bos_id": 2,
    "unk_id": 3,
    "bos_piece": "<bos>",
    "eos_piece": "<eos>",
    "add_dummy_prefix": False,
    "user_defined_symbols": [
        *("<start_of_turn>", "<end_of_turn>", "<table>", "\n\n", "\n\n\n", "</s>"),
        *("▁" * count for count in range(2, 17)),
    ],
}


@cache
def sentence_piece(family: str) -> sentencepiece.SentencePieceProcessor:
    """An original of `llama`, of `gemma`, or of `spaces`: one that drops spaces that are too much."""
    settings = {"llama": LLAMA_SETTINGS, "gemma": GEMMA_SETTINGS, "spaces": LLAMA_SETTINGS}[family]
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([line for text in corpus() for line in text.split("\n") if "\0" not in line]),
        model_writer=written,
        model_type="bpe",
        vocab_size=3_000,
        character_coverage=0.99,
        byte_fallback=True,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=family == "spaces",
        minloglevel=2,
        **settings,
    )
    return sentencepiece.SentencePieceProcessor(model_proto=written.getvalue())


def sentence_piece_metadata(
    original: sentencepiece.SentencePieceProcessor, added: Mapping[str, bool], **keys: MetadataValue
) -> dict[str, MetadataValue]:
    """As llama.cpp's converter writes it (`_create_vocab_sentencepiece`).

    Args:
        original: the model.
        added: what tokenizer_config.json lists as added tokens, and whether they are special.
        keys: more of `tokenizer.ggml.`.
    """
    tokens = [original.id_to_piece(index) for index in range(original.vocab_size())]
    scores = [original.get_score(index) for index in range(len(tokens))]
    types = [_type(original, index) for index in range(len(tokens))]
    for text, is_special in added.items():
        if text not in tokens:
            tokens.append("")
            scores.append(0.0)
            types.append(UNUSED)
        index = tokens.index(text) if text in tokens else len(tokens) - 1
        scores[index] = -1000.0
        types[index] = CONTROL if is_special else USER_DEFINED
        tokens[index] = text if is_special else text.replace("▁", " ")
    return {
        "general.architecture": "llama",
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.bos_token_id": original.bos_id(),
        "tokenizer.ggml.eos_token_id": original.eos_id(),
        "tokenizer.ggml.unknown_token_id": original.unk_id(),
        "tokenizer.ggml.add_bos_token": False,
        **{f"tokenizer.ggml.{key}": value for key, value in keys.items()},
    }


def _type(original: sentencepiece.SentencePieceProcessor, index: int) -> int:
    if original.is_unknown(index):
        return UNKNOWN
    if original.is_control(index):
        return CONTROL
    if original.is_unused(index):
        return UNUSED
    return BYTE if original.is_byte(index) else NORMAL


def hugging_face(
    original: sentencepiece.SentencePieceProcessor, added: Sequence[AddedToken], *, adds_prefix: bool
) -> Tokenizer:
    """The tokenizer.json that Llama 2, Phi-3 and Gemma have: converted from the model by transformers' rules."""
    pieces = {original.id_to_piece(index): original.get_score(index) for index in range(original.vocab_size())}
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    skipped = {piece for piece, index in vocabulary.items() if _type(original, index) != NORMAL}
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocabulary,
            merges=generate_merges(vocabulary, pieces, skipped),
            unk_token=original.id_to_piece(original.unk_id()),
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    prefix = [normalizers.Prepend("▁")] if adds_prefix else []
    tokenizer.normalizer = normalizers.Sequence([*prefix, normalizers.Replace(" ", "▁")])
    strip = [decoders.Strip(" ", 1, 0)] if adds_prefix else []
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    tokenizer.decoder = decoders.Sequence(steps)
    tokenizer.add_special_tokens([token for token in added if token.special])
    tokenizer.add_tokens([token for token in added if not token.special])
    return tokenizer


def gguf_of(metadata: Mapping[str, MetadataValue]) -> GgufFile:
    """A file without tensors."""
    return GgufFile(Path("original.gguf"), dict(metadata), {})
