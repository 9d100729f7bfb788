"""The tables of architectures: the order of modules, names in older files, and what is left over or read too early."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from inference_svc.adapters.base_model import QUANTIZED_LAYER_SUFFIXES
from inference_svc.layers.rotary import RopeConfig
from inference_svc.models.architectures import ARCHITECTURES, linear_shapes
from inference_svc.models.checkpoint import Checkpoint
from inference_svc.models.config import ModelConfig
from inference_svc.models.loading import load_checkpoint, read_config
from inference_svc.weights.errors import MalformedFile, UnsupportedFile
from inference_svc.weights.source import SourceFormat
from ordering_svc.domain.architectures import LAYER_MODULES, QUANTIZED_LAYERS
from tests.inference_svc.models.memory_source import MemorySource, random_source

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 32,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
}


def gguf_metadata(architecture: str, **more: object) -> dict[str, Any]:
    values: dict[str, object] = {
        "embedding_length": 8,
        "feed_forward_length": 12,
        "block_count": 2,
        "attention.head_count": 2,
        "attention.head_count_kv": 1,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "attention.layer_norm_epsilon": 1e-5,
        "context_length": 64,
    }
    values |= {key.replace("__", "."): value for key, value in more.items()}
    return {"general.architecture": architecture} | {f"{architecture}.{key}": value for key, value in values.items()}


def hugging_face(**more: object) -> MemorySource:
    return MemorySource(SourceFormat.HUGGING_FACE, CONFIG | more)


def dense(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    return {
        name: tensor if isinstance(tensor, torch.Tensor) else tensor.dequantize()
        for name, tensor in checkpoint.tensors.items()
    }


def same(one: Checkpoint, other: Checkpoint) -> bool:
    left, right = dense(one), dense(other)
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_the_ordering_service_knows_the_same_modules_in_the_same_order() -> None:
    assert LAYER_MODULES.keys() == ARCHITECTURES.keys()
    for name, architecture in ARCHITECTURES.items():
        # Of a Mixtral it knows what transformers 5 has as modules: not the router and the experts.
        modules = tuple(module.path for module in architecture.linear if "block_sparse_moe" not in module.path)
        assert LAYER_MODULES[name] == modules, name
    assert dict(QUANTIZED_LAYERS) == dict(QUANTIZED_LAYER_SUFFIXES)


def test_experts_come_one_after_the_other_and_the_head_last() -> None:
    config = read_config(hugging_face(model_type="mixtral", num_local_experts=2, num_hidden_layers=1))
    paths = [path.removeprefix("model.layers.0.") for path in linear_shapes(config)]
    experts = [f"block_sparse_moe.experts.{expert}.{weight}" for expert in (0, 1) for weight in ("w1", "w2", "w3")]
    attention = [f"self_attn.{name}_proj" for name in "qkvo"]
    assert paths == [*attention, "block_sparse_moe.gate", *experts, "lm_head"]


def test_nothing_but_headers_is_read_for_the_config() -> None:
    source = random_source(SourceFormat.HUGGING_FACE, CONFIG)
    assert read_config(source).num_layers == 2
    source.tensors = {**source.tensors, "model.layers.0.self_attn.q_proj.bias": torch.zeros(8)}
    with pytest.raises(MalformedFile, match=r"q_proj\.bias' is not part of a llama model"):
        load_checkpoint(source)
    assert source.asked == []


def test_each_tensor_is_read_once_though_experts_are_parts_of_one() -> None:
    metadata = gguf_metadata("llama", expert_count=3, expert_used_count=2)
    source = random_source(SourceFormat.GGUF, metadata)
    load_checkpoint(source)
    assert sorted(source.asked) == sorted(source.tensors)


def test_older_files_with_a_tensor_for_each_expert_are_read_as_those_that_stack_them() -> None:
    source = random_source(SourceFormat.GGUF, gguf_metadata("llama", expert_count=3, expert_used_count=2))
    apart: dict[str, torch.Tensor] = {}
    for name, tensor in source.tensors.items():
        if "_exps." in name:
            apart |= {name.replace("_exps.", f".{i}."): part for i, part in enumerate(tensor)}
        else:
            apart[name] = tensor
    older = MemorySource(SourceFormat.GGUF, source.metadata, apart)
    assert same(load_checkpoint(older), load_checkpoint(source))


@pytest.mark.parametrize("architecture", ["phi2", "llama", "qwen2"])
def test_files_that_fuse_queries_keys_and_values_are_read_as_those_that_do_not(architecture: str) -> None:
    source = random_source(SourceFormat.GGUF, gguf_metadata(architecture))
    fused = {name: tensor for name, tensor in source.tensors.items() if not name[:-7].endswith(("_q", "_k", "_v"))}
    fused = {name: tensor for name, tensor in fused.items() if not any(f"attn_{x}." in name for x in "qkv")}
    for layer in range(2):
        for kind in ("weight", "bias"):
            names = [f"blk.{layer}.attn_{x}.{kind}" for x in "qkv"]
            if names[0] in source.tensors:
                fused[f"blk.{layer}.attn_qkv.{kind}"] = torch.cat([source.tensors[name] for name in names])
    assert len(fused) < len(source.tensors)
    joined = MemorySource(SourceFormat.GGUF, source.metadata, fused)
    assert same(load_checkpoint(joined), load_checkpoint(source))


def test_a_tied_head_that_is_in_the_file_all_the_same_is_used() -> None:
    tied = random_source(SourceFormat.HUGGING_FACE, CONFIG | {"tie_word_embeddings": True})
    assert "lm_head.weight" not in tied.tensors
    assert read_config(tied).tied_embeddings
    tied.tensors = {**tied.tensors, "lm_head.weight": torch.ones(32, 8)}
    checkpoint = load_checkpoint(tied)
    assert not checkpoint.config.tied_embeddings
    assert checkpoint.packed("lm_head.weight").dequantize().eq(1).all()


def test_frequencies_that_old_checkpoints_keep_are_those_of_the_config() -> None:
    source = random_source(SourceFormat.HUGGING_FACE, CONFIG)
    source.tensors = {**source.tensors, "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(2)}
    assert load_checkpoint(source).config.rope == RopeConfig(4)


@pytest.mark.parametrize(
    ("value", "said"), [("bloom", "'bloom'"), (None, "None"), (7, "7"), ("x" * 1000, "xxx")], ids=str
)
def test_an_unknown_architecture_is_refused_with_those_there_are(value: object, said: str) -> None:
    with pytest.raises(UnsupportedFile, match="gemma, gemma2, llama, mistral, mixtral, phi, phi3") as caught:
        read_config(hugging_face(model_type=value))
    assert said in str(caught.value)
    assert len(str(caught.value)) < 300
    with pytest.raises(UnsupportedFile, match="gemma, gemma2, llama, phi2, phi3, qwen2, starcoder2 are"):
        read_config(MemorySource(SourceFormat.GGUF, {"general.architecture": value}))


def test_experts_where_an_architecture_has_none_are_refused() -> None:
    with pytest.raises(UnsupportedFile, match=r"architecture 'qwen2' with experts .* is not supported"):
        read_config(MemorySource(SourceFormat.GGUF, gguf_metadata("qwen2", expert_count=4)))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden_act", "relu"),
        ("quantization_config", {"quant_method": "gptq"}),
        ("rope_scaling", {"type": "dynamic", "factor": 2.0}),
        ("rope_parameters", {"rope_type": "proportional", "rope_theta": 1e4}),
        ("partial_rotary_factor", 0.5),
        ("rope_interleaved", True),
        ("layer_types", ["full_attention", "sliding_attention"]),
    ],
)
def test_a_key_that_would_change_the_result_is_refused_by_name(key: str, value: object) -> None:
    name = {"rope_scaling": "'type'", "rope_parameters": "'rope_type'"}.get(key, repr(key))
    with pytest.raises(UnsupportedFile, match=name):
        read_config(hugging_face(**{key: value}))


@pytest.mark.parametrize(
    ("architecture", "key", "value"),
    [
        ("phi", "qk_layernorm", True),
        ("gemma2", "use_bidirectional_attention", True),
        ("phi3", "rope_scaling", {"type": "linear", "factor": None}),
        ("gemma2", "layer_types", ["full_attention"]),
        ("gemma2", "layer_types", ["full_attention", "chunked_attention"]),
        ("qwen2", "max_window_layers", -1),
        ("mistral", "sliding_window", 0),
        ("mistral", "sliding_window", "4096"),
        ("mixtral", "num_experts_per_tok", 9),
        ("phi3", "rope_scaling", {"type": "longrope", "short_factor": [1.0], "long_factor": [1.0, 2.0]}),
        ("phi3", "rope_scaling", {"type": "su", "short_factor": [1.0, 1.0], "long_factor": [1.0, 0.0]}),
        ("llama", "rope_parameters", {"rope_type": "llama3", "factor": 8.0}),
        ("llama", "rope_parameters", ["default"]),
        ("llama", "num_key_value_heads", 3),
        ("llama", "num_attention_heads", 3),
        ("llama", "head_dim", 3),
        ("llama", "hidden_size", 10**400),
        ("llama", "rms_norm_eps", 10**400),
        ("llama", "attention_bias", "yes"),
        ("llama", "vocab_size", None),
    ],
)
def test_a_value_that_makes_no_sense_is_named(architecture: str, key: str, value: object) -> None:
    with pytest.raises((MalformedFile, UnsupportedFile)) as caught:
        read_config(hugging_face(**{"model_type": architecture, "use_sliding_window": True, key: value}))
    assert "config.json" in str(caught.value)
    assert len(str(caught.value)) < 400


def config_of(architecture: str, **more: object) -> ModelConfig:
    return read_config(hugging_face(model_type=architecture, **more))


def test_settings_of_transformers_4_and_5_mean_the_same() -> None:
    scaling = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
    old = config_of("llama", rope_theta=5e5, rope_scaling={"rope_type": "llama3", **scaling})
    new = config_of("llama", rope_parameters={"rope_type": "llama3", "rope_theta": 5e5, **scaling})
    assert old == new
    assert config_of("phi", partial_rotary_factor=0.5) == config_of("phi", rope_parameters={"rope_type": "default"})
    assert config_of("llama", rope_scaling=None, rope_theta=1e6) == config_of(
        "llama", rope_parameters={"rope_theta": 1e6, "rope_type": "default"}
    )


def test_what_config_json_leaves_out_is_what_transformers_takes() -> None:
    assert config_of("mistral").windows == (4096, 4096)
    assert config_of("mistral", sliding_window=None).windows == (None, None)
    assert config_of("mixtral").rope.theta == 1e6
    assert config_of("gemma2", head_dim=4).windows == (4096, None)
    assert config_of("gemma2", head_dim=4).attention_scale == 256**-0.5
    assert config_of("gemma", hidden_act="gelu").activation == "gelu_tanh"
    assert config_of("gemma").tied_embeddings
    assert not config_of("qwen2", sliding_window=16).windows[1]
    assert config_of("starcoder2").biased == {module.path for module in ARCHITECTURES["starcoder2"].linear}


def test_a_quarter_of_a_hidden_size_that_gguf_does_not_state_is_scaled_as_the_model_of_27b() -> None:
    head = {"token_embd.weight": torch.zeros(4, 8)}
    small = MemorySource(SourceFormat.GGUF, gguf_metadata("gemma2", attention__key_length=16), head)
    large = MemorySource(SourceFormat.GGUF, gguf_metadata("gemma2", attention__key_length=16, block_count=46), head)
    assert read_config(small).attention_scale == 16**-0.5
    assert read_config(large).attention_scale == 4**-0.5


@pytest.mark.parametrize(
    ("more", "window"),
    [
        ({"block_count": 32, "context_length": 4096}, 2047),
        ({"block_count": 32, "context_length": 4096, "attention__sliding_window": 0}, None),
        ({"block_count": 40, "context_length": 4096, "attention__sliding_window": 100}, 100),
        ({"block_count": 32, "context_length": 131072}, None),
    ],
)
def test_a_phi3_file_without_a_window_has_that_of_its_kind(more: dict[str, object], window: int | None) -> None:
    head = {"token_embd.weight": torch.zeros(4, 8)}
    assert read_config(MemorySource(SourceFormat.GGUF, gguf_metadata("phi3", **more), head)).windows[0] == window
