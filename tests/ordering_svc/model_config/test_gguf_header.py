"""GGUF headers: the real file, and files that are cut short or lie."""

from __future__ import annotations

import json
import random
import struct
from pathlib import Path

import pytest

from ordering_svc.domain.architectures import ModelStructure
from ordering_svc.errors import ArchitectureUnknown, ModelConfigInvalid
from ordering_svc.model_config.gguf_config import config_of_gguf, model_of_gguf
from ordering_svc.model_config.gguf_header import read_gguf_header


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def string_entry(key: str, value: str) -> bytes:
    return text(key) + struct.pack("<I", 8) + text(value)


def number_entry(key: str, value: int) -> bytes:
    return text(key) + struct.pack("<II", 4, value)


def gguf(*entries: bytes, tensors: tuple[str, ...] = (), version: int = 3) -> bytes:
    header = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(entries)) + b"".join(entries)
    return header + b"".join(text(n) + struct.pack("<IQIQ", 1, 32, 0, 0) for n in tensors)


SMALL = gguf(
    string_entry("general.architecture", "llama"),
    number_entry("llama.block_count", 2),
    text("tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 8, 2) + text("a") + text("b"),
    text("tokenizer.ggml.scores") + struct.pack("<IIQff", 9, 6, 2, 0.5, 0.5),
    tensors=("token_embd.weight", "output.weight"),
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.gguf"


def test_the_real_model_is_a_tied_llama_of_thirty_layers(smollm2_gguf: Path) -> None:
    config = config_of_gguf(read_gguf_header(smollm2_gguf), "smollm2")

    assert config["model_type"] == "llama"
    assert config["num_hidden_layers"] == 30
    assert (config["num_attention_heads"], config["num_key_value_heads"]) == (9, 3)
    assert config["tie_word_embeddings"] is True


def test_metadata_takes_the_shape_of_a_config(path: Path) -> None:
    path.write_bytes(SMALL)
    config = config_of_gguf(read_gguf_header(path), "small")
    expected = {"model_type": "llama", "num_hidden_layers": 2, "vocab_size": 2, "tie_word_embeddings": False}

    assert config == expected
    assert model_of_gguf(path, "id").structure == ModelStructure("llama", 2)


@pytest.mark.parametrize(("named", "expected"), [("phi2", "phi"), ("phi3", "phi3"), ("gemma2", "gemma2")])
def test_architecture_ids_become_model_types(path: Path, named: str, expected: str) -> None:
    path.write_bytes(gguf(string_entry("general.architecture", named), number_entry(f"{named}.block_count", 1)))
    assert model_of_gguf(path, "id").structure == ModelStructure(expected, 1)


def test_a_llama_with_experts_is_a_mixtral(path: Path) -> None:
    entries = [number_entry("llama.block_count", 1), number_entry("llama.expert_count", 8)]
    path.write_bytes(gguf(string_entry("general.architecture", "llama"), *entries))
    assert model_of_gguf(path, "id").structure.architecture == "mixtral"


def test_an_architecture_without_a_table_is_named(path: Path) -> None:
    path.write_bytes(gguf(string_entry("general.architecture", "rwkv"), number_entry("rwkv.block_count", 1)))
    with pytest.raises(ArchitectureUnknown, match="rwkv"):
        model_of_gguf(path, "id")


def test_a_file_cut_short_at_any_byte_is_refused(path: Path) -> None:
    for length in range(len(SMALL)):
        path.write_bytes(SMALL[:length])
        with pytest.raises(ModelConfigInvalid):
            model_of_gguf(path, "id")


HUGE = 2**63 + 5


@pytest.mark.parametrize(
    "content",
    [
        b"GGML" + SMALL[4:],
        gguf(version=1),
        gguf(version=3 << 24),
        b"GGUF" + struct.pack("<IQQ", 3, HUGE, 0),
        b"GGUF" + struct.pack("<IQQ", 3, 0, HUGE),
        gguf(struct.pack("<Q", HUGE)),
        gguf(struct.pack("<Q", 2**30)),
        gguf(text("k") + struct.pack("<I", 99)),
        gguf(text("k") + struct.pack("<IIQ", 9, 8, HUGE)),
        gguf(text("k") + struct.pack("<IIQ", 9, 8, 2**27)),
        gguf(text("k") + struct.pack("<IIQ", 9, 10, 2**27)),
        gguf(text("k") + struct.pack("<IIQ", 9, 9, 1)),
        gguf(number_entry("k", 1), number_entry("k", 1)),
        b"GGUF" + struct.pack("<IQQ", 3, 1, 0) + text("t") + struct.pack("<I", 2**31),
        gguf(number_entry("general.architecture", 1)),
        gguf(string_entry("general.architecture", "llama")),
        gguf(string_entry("general.architecture", "llama"), number_entry("llama.block_count", 2**31)),
        gguf(string_entry("general.architecture", "llama"), number_entry("llama.block_count", 0)),
    ],
)
def test_a_header_that_lies_is_refused(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(ModelConfigInvalid):
        model_of_gguf(path, "id")


def test_changed_bytes_never_lead_to_anything_but_a_typed_error(path: Path) -> None:
    generator = random.Random(3)
    for _ in range(1500):
        mutated = bytearray(SMALL)
        mutated[generator.randrange(len(mutated))] = generator.randrange(256)
        path.write_bytes(mutated)
        try:
            model = model_of_gguf(path, "id")
        except (ModelConfigInvalid, ArchitectureUnknown):
            continue
        assert json.dumps(model.structure.num_layers)
