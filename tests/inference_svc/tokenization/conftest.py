"""A small tokenizer that every test of this folder may use."""

from __future__ import annotations

from pathlib import Path

import pytest

from inference_svc.tokenization.byte_alphabet import BYTE_OF_CHARACTER
from inference_svc.tokenization.gguf_tokenizer import tokenizer_from_gguf
from inference_svc.tokenization.token_text import BYTE_TOKENS
from inference_svc.tokenization.tokenizer import ModelTokenizer
from inference_svc.weights.gguf import GgufFile
from inference_svc.weights.gguf_header import MetadataValue

TEMPLATE = (
    "{% for message in messages %}{{ bos_token + message['role'] + ':' + message['content'] + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ bos_token + 'assistant:' }}{% endif %}"
)


def _metadata(tokens: list[str]) -> dict[str, MetadataValue]:
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [*[1] * 258, 3, 3, 4],
        "tokenizer.ggml.merges": ["h e", "Ġ he"],
        "tokenizer.ggml.bos_token_id": 258,
        "tokenizer.ggml.eos_token_id": 259,
        "tokenizer.chat_template": TEMPLATE,
    }


@pytest.fixture
def small_metadata() -> dict[str, MetadataValue]:
    """All 256 bytes, two merges, two control tokens and a user-defined one."""
    return _metadata([*BYTE_OF_CHARACTER, "he", "Ġhe", "<s>", "</s>", "<think>"])


def gguf_of(metadata: dict[str, MetadataValue]) -> GgufFile:
    """A file without tensors."""
    return GgufFile(Path("small.gguf"), metadata, {})


@pytest.fixture
def small_tokenizer(small_metadata: dict[str, MetadataValue]) -> ModelTokenizer:
    """The tokenizer of small_metadata."""
    return tokenizer_from_gguf(gguf_of(small_metadata))


@pytest.fixture(scope="session")
def shared_small() -> ModelTokenizer:
    """A tokenizer whose ids 0 to 255 are bytes, in the order of their values."""
    characters = {byte: character for character, byte in BYTE_OF_CHARACTER.items()}
    tokens = [*(characters[byte] for byte in range(256)), "he", "Ġhe", "<s>", "</s>", "<think>"]
    return tokenizer_from_gguf(gguf_of(_metadata(tokens)))


def _pieces_metadata() -> dict[str, MetadataValue]:
    letters = ["\u2581", "h", "e", "l", "o", "he", "\u2581he", "ll"]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", *BYTE_TOKENS, *letters, "<think>"],
        "tokenizer.ggml.token_type": [2, 3, 3, *[6] * 256, *[1] * len(letters), 4],
        "tokenizer.ggml.scores": [0.0] * 259 + [-10.0, -11.0, -12.0, -13.0, -14.0, -1.0, -2.0, -3.0] + [-1000.0],
    }


@pytest.fixture
def pieces_metadata() -> dict[str, MetadataValue]:
    """Kind `llama`: 3 control tokens, 256 bytes, single letters, `▁he`, and a user-defined token."""
    return _pieces_metadata()


@pytest.fixture(scope="session")
def shared_pieces() -> ModelTokenizer:
    """The tokenizer of pieces_metadata."""
    return tokenizer_from_gguf(gguf_of(_pieces_metadata()))
