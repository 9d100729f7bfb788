"""Loading the weights of GGUF files, and refusing those that do not hold together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from inference_svc.layers.rotary import FrequencyDivisors, RopeConfig
from inference_svc.models.checkpoint import Checkpoint
from inference_svc.models.loading import load_checkpoint, read_config
from inference_svc.models.tensor_plan import unpermuted_rows
from inference_svc.weights.errors import MalformedFile, UnsupportedFile
from inference_svc.weights.gguf import GgufFile
from tests.inference_svc.weights.tiny_llama import permuted, write_tiny_llama_gguf

Metadata = dict[str, Any]
Tensors = dict[str, np.ndarray[Any, Any]]
Rewrite = Callable[[Callable[[Metadata, Tensors], None]], GgufFile]


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.gguf"
    write_tiny_llama_gguf(path)
    return path


@pytest.fixture
def rewrite(tiny: Path, tmp_path: Path) -> Rewrite:
    """Changes metadata and float32 tensors of the tiny file."""

    def change(edit: Callable[[Metadata, Tensors], None]) -> GgufFile:
        opened = GgufFile.open(tiny)
        metadata: Metadata = dict(opened.metadata)
        tensors = {
            name: opened.tensor(name).dequantize().numpy().reshape(entry.shape)
            for name, entry in opened.entries.items()
        }
        edit(metadata, tensors)
        path = tmp_path / "changed.gguf"
        writer = gguf.GGUFWriter(path, metadata.pop("general.architecture", "llama"))
        for key, value in metadata.items():
            if isinstance(value, str):
                writer.add_string(key, value)
            elif isinstance(value, float):
                writer.add_float32(key, value)
            elif isinstance(value, bool):
                writer.add_bool(key, value)
            elif isinstance(value, list):
                writer.add_array(key, value)
            elif value < 0:
                writer.add_int32(key, value)
            else:
                writer.add_uint32(key, value)
        for name, tensor in tensors.items():
            writer.add_tensor(name, tensor)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return GgufFile.open(path)

    return change


def tensors_of(checkpoint: Checkpoint) -> Iterator[tuple[str, torch.Tensor]]:
    for name, tensor in checkpoint.tensors.items():
        yield name, tensor if isinstance(tensor, torch.Tensor) else tensor.dequantize()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("quantization", ["F32", "F16", "Q4_0", "Q8_0"])
def test_every_weight_arrives_under_its_hugging_face_name_and_layout(
    tmp_path: Path, quantization: str, tied: bool
) -> None:
    path = tmp_path / "tiny.gguf"
    kind = gguf.GGMLQuantizationType[quantization]
    expected = write_tiny_llama_gguf(path, quantization=kind, tied=tied)
    checkpoint = load_checkpoint(GgufFile.open(path))
    assert checkpoint.tensors.keys() == expected.keys()
    assert ("lm_head.weight" in expected) is not tied
    assert checkpoint.config.tied_embeddings is tied
    for name, tensor in tensors_of(checkpoint):
        assert torch.equal(tensor, torch.from_numpy(expected[name])), name
    assert checkpoint.packed("model.embed_tokens.weight").quantization is kind
    assert checkpoint.dense("model.norm.weight").dtype is torch.float32


def test_the_config_is_what_the_file_says(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    write_tiny_llama_gguf(path, hidden=96, heads=6, kv_heads=3, layers=3, ffn=64, vocab=50, context=77)
    config = read_config(GgufFile.open(path))
    assert (config.hidden_size, config.num_heads, config.num_kv_heads, config.head_dim) == (96, 6, 3, 16)
    assert (config.num_layers, config.intermediate_size, config.vocab_size, config.context_length) == (3, 64, 50, 77)
    assert config.rope == RopeConfig(16, 10000.0)
    assert config.norm_eps == pytest.approx(1e-5)


def test_a_file_may_carry_its_tokens(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    write_tiny_llama_gguf(path, vocab=["a", "b", "ab"])
    opened = GgufFile.open(path)
    assert opened.metadata["tokenizer.ggml.tokens"] == ["a", "b", "ab"]
    assert read_config(opened).vocab_size == 3


@pytest.mark.parametrize(("heads", "head_dim"), [(1, 2), (3, 4), (9, 64)])
def test_unpermuting_undoes_the_converters_permutation(heads: int, head_dim: int) -> None:
    rows = np.arange(heads * head_dim)[:, None]
    assert torch.from_numpy(permuted(rows, heads))[unpermuted_rows(heads, head_dim)].equal(torch.from_numpy(rows))


def test_a_missing_tensor_is_named(rewrite: Rewrite) -> None:
    changed = rewrite(lambda _, tensors: tensors.__delitem__("blk.1.ffn_up.weight"))
    with pytest.raises(MalformedFile, match=r"'blk\.1\.ffn_up\.weight' is missing"):
        load_checkpoint(changed)


def test_without_an_embedding_there_is_no_config(rewrite: Rewrite) -> None:
    with pytest.raises(MalformedFile, match=r"'token_embd\.weight' is missing"):
        load_checkpoint(rewrite(lambda _, tensors: tensors.__delitem__("token_embd.weight")))


def test_a_tensor_of_another_shape_is_named_with_both_shapes(rewrite: Rewrite) -> None:
    def narrow(_: Metadata, tensors: Tensors) -> None:
        tensors["blk.0.attn_q.weight"] = tensors["blk.0.attn_q.weight"][:, :32]

    with pytest.raises(MalformedFile, match=r"'blk\.0\.attn_q\.weight' has the shape \(64, 32\).* asks for \(64, 64\)"):
        load_checkpoint(rewrite(narrow))


def test_a_tensor_with_more_axes_is_a_shape_like_any_other_that_does_not_fit(rewrite: Rewrite) -> None:
    def deepen(_: Metadata, tensors: Tensors) -> None:
        tensors["blk.0.attn_q.weight"] = tensors["blk.0.attn_q.weight"].reshape(4, 16, 64)

    changed = rewrite(deepen)
    with pytest.raises(MalformedFile, match=r"\(4, 16, 64\)"):
        load_checkpoint(changed)
    assert changed.tensor("blk.0.attn_q.weight").shape == (64, 64)  # read as a matrix all the same: experts are stacked


@pytest.mark.parametrize("name", ["blk.1.attn_q.bias", "blk.0.ffn_gate_exps.weight", "blk.2.attn_norm.weight"])
def test_a_tensor_that_would_be_ignored_is_refused(rewrite: Rewrite, name: str) -> None:
    def add(_: Metadata, tensors: Tensors) -> None:
        tensors[name] = np.ones(64, np.float32)

    with pytest.raises(MalformedFile, match=f"{name!r} is not part of a llama model"):
        load_checkpoint(rewrite(add))


def test_a_bias_in_the_first_block_is_wanted_in_all(rewrite: Rewrite) -> None:
    def add(_: Metadata, tensors: Tensors) -> None:
        tensors["blk.0.attn_q.bias"] = np.ones(64, np.float32)

    with pytest.raises(MalformedFile, match=r"'blk\.1\.attn_q\.bias' is missing"):
        load_checkpoint(rewrite(add))


def test_a_file_with_everything_wrong_still_gets_a_short_message(rewrite: Rewrite) -> None:
    def rename(_: Metadata, tensors: Tensors) -> None:
        for name in [name for name in tensors if name.startswith("blk.")]:
            tensors["x" + name] = tensors.pop(name)

    with pytest.raises(MalformedFile, match="and 31 more") as caught:
        load_checkpoint(rewrite(rename))
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("kind", ["I8", "Q8_K"])
def test_a_type_that_cannot_be_dequantized_is_unsupported(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "tiny.gguf"
    write_tiny_llama_gguf(path, hidden=256, ffn=256)
    opened = GgufFile.open(path)
    entries = dict(opened.entries)
    old = entries["blk.0.attn_v.weight"]
    entries[old.name] = replace(old, quantization=gguf.GGMLQuantizationType[kind])
    with pytest.raises(UnsupportedFile, match=rf"'blk\.0\.attn_v\.weight' is of type {kind}"):
        load_checkpoint(GgufFile(path, opened.metadata, entries))


def test_frequency_divisors_are_read(rewrite: Rewrite) -> None:
    def add(_: Metadata, tensors: Tensors) -> None:
        tensors["rope_freqs.weight"] = np.arange(1, 9, dtype=np.float32)

    assert read_config(rewrite(add)).rope.scaling == FrequencyDivisors((1, 2, 3, 4, 5, 6, 7, 8))


@pytest.mark.parametrize("factors", [[1.0] * 7, [1.0] * 7 + [0.0], [1.0] * 7 + [float("nan")]])
def test_frequency_divisors_that_make_no_sense_are_refused(rewrite: Rewrite, factors: list[float]) -> None:
    def add(_: Metadata, tensors: Tensors) -> None:
        tensors["rope_freqs.weight"] = np.array(factors, np.float32)

    with pytest.raises(MalformedFile, match=r"rope_freqs\.weight"):
        load_checkpoint(rewrite(add))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("llama.embedding_length", 0),
        ("llama.embedding_length", 62),
        ("llama.embedding_length", "64"),
        ("llama.embedding_length", 64.0),
        ("llama.attention.head_count", -4),
        ("llama.attention.head_count", True),
        ("llama.attention.head_count", 128),
        ("llama.attention.head_count_kv", 3),
        ("llama.attention.head_count_kv", 8),
        ("llama.attention.head_count_kv", [2, 2]),
        ("llama.attention.key_length", 0),
        ("llama.block_count", 4097),
        ("llama.block_count", 3),
        ("llama.block_count", 1),
        ("llama.feed_forward_length", 127),
        ("llama.rope.freq_base", 0.0),
        ("llama.rope.freq_base", float("nan")),
        ("llama.attention.layer_norm_rms_epsilon", float("inf")),
        ("llama.context_length", 1 << 25),
    ],
)
def test_a_number_that_makes_no_sense_is_malformed(rewrite: Rewrite, key: str, value: object) -> None:
    def put(metadata: Metadata, _: Tensors) -> None:
        metadata[key] = value

    with pytest.raises(MalformedFile):
        load_checkpoint(rewrite(put))


@pytest.mark.parametrize(
    "key",
    [
        "llama.embedding_length",
        "llama.attention.head_count",
        "llama.block_count",
        "llama.feed_forward_length",
        "llama.attention.layer_norm_rms_epsilon",
        "llama.context_length",
    ],
)
def test_a_missing_number_is_named(rewrite: Rewrite, key: str) -> None:
    with pytest.raises(MalformedFile, match=key.replace(".", r"\.")):
        load_checkpoint(rewrite(lambda metadata, _: metadata.__delitem__(key)))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("general.architecture", "falcon"),
        ("llama.rope.dimension_count", 8),
        ("llama.rope.scaling.type", "dynamic"),
        ("llama.attention.value_length", 32),
        ("llama.attention.causal", False),
        ("llama.attention.clamp_kqv", 8.0),
        ("llama.logit_scale", 0.5),
    ],
)
def test_what_would_change_the_result_unseen_is_unsupported(rewrite: Rewrite, key: str, value: object) -> None:
    def put(metadata: Metadata, _: Tensors) -> None:
        metadata[key] = value

    with pytest.raises(UnsupportedFile):
        load_checkpoint(rewrite(put))


def test_a_long_value_makes_no_long_message(rewrite: Rewrite) -> None:
    def put(metadata: Metadata, _: Tensors) -> None:
        metadata["llama.attention.head_count_kv"] = [2] * 100_000

    with pytest.raises(MalformedFile) as caught:
        load_checkpoint(rewrite(put))
    assert len(str(caught.value)) < 1000
