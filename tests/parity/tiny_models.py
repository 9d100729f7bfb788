"""Tiny random models of every architecture: in transformers, and in files as its users have them.

The folders are written by transformers, the GGUF files by the `gguf` package with names from its own tables and
metadata as llama.cpp's converter writes it: neither knows anything of the tables that are tested with them.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import gguf.quants
import numpy as np
import torch
import transformers
from torch import Tensor

from tests.inference_svc.weights.tiny_llama import permuted

ARCH = gguf.MODEL_ARCH
SIZES: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": None,
    "attn_implementation": "eager",
}
WINDOW = 12
Pack = Callable[[np.ndarray[Any, Any], gguf.GGMLQuantizationType], np.ndarray[Any, Any]]
SHORT_FACTORS, LONG_FACTORS = [1.0, 1.1, 1.3, 1.4, 1.9, 2.0, 2.5, 3.0], [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]
ORIGINAL_LENGTH = 24  # a longer sequence has the long factors


@dataclass(frozen=True)
class TinyModel:
    """One model: an architecture and what its config says."""

    name: str  # of transformers' classes: `Llama`
    arch: gguf.MODEL_ARCH
    config: dict[str, Any] = field(default_factory=dict)
    gguf_layers: int | None = None  # where a GGUF file means something by the number of layers

    def build(self) -> Any:
        """The model in transformers: float32, random weights of such sizes that every part counts."""
        config = getattr(transformers, f"{self.name}Config")(**SIZES | self.config)
        model = getattr(transformers, f"{self.name}ForCausalLM")(config).float().eval()
        generator = torch.Generator().manual_seed(7)
        stores_less_one = self.name.startswith("Gemma")
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                noise = torch.randn(parameter.shape, generator=generator)
                if "norm" in name and name.endswith("weight"):
                    parameter.copy_(noise * 0.1 + (0.0 if stores_less_one else 1.0))
                else:
                    parameter.copy_(noise * (0.3 if parameter.dim() == 1 else 2 * parameter.shape[-1] ** -0.5))
                if name == "model.embed_tokens.weight" and stores_less_one:
                    parameter.mul_(0.5)
        return model


LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 32}
LONG_ROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": SHORT_FACTORS,
    "long_factor": LONG_FACTORS,
}

# One for each architecture: the cells of the table.
TINY_MODELS: dict[str, TinyModel] = {
    "llama": TinyModel("Llama", ARCH.LLAMA, {"rope_parameters": LLAMA3}),
    "mistral": TinyModel("Mistral", ARCH.LLAMA, {"head_dim": 32, "sliding_window": WINDOW}),
    "phi3": TinyModel("Phi3", ARCH.PHI3, {"sliding_window": WINDOW}),
    "gemma": TinyModel("Gemma", ARCH.GEMMA, {"head_dim": 32, "num_key_value_heads": 1}),
    "gemma2": TinyModel(
        "Gemma2",
        ARCH.GEMMA2,
        {
            "num_hidden_layers": 3,
            "head_dim": 32,
            "query_pre_attn_scalar": 32,
            "sliding_window": WINDOW,
            "attn_logit_softcapping": 5.0,
            "final_logit_softcapping": 3.0,
        },
    ),
    "qwen2": TinyModel("Qwen2", ARCH.QWEN2, {"tie_word_embeddings": True}),
    "phi": TinyModel(
        "Phi", ARCH.PHI2, {"num_key_value_heads": 4, "intermediate_size": 256, "partial_rotary_factor": 0.5}
    ),
    "starcoder2": TinyModel("Starcoder2", ARCH.STARCODER2, {"sliding_window": WINDOW}),
    "mixtral": TinyModel(
        "Mixtral", ARCH.LLAMA, {"num_local_experts": 5, "num_experts_per_tok": 2, "sliding_window": WINDOW}
    ),
}

# What else their files can say.
VARIANTS: dict[str, TinyModel] = {
    "llama with biases, tied": TinyModel(
        "Llama", ARCH.LLAMA, {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True, "head_dim": 48}
    ),
    "llama with linear scaling": TinyModel(
        "Llama", ARCH.LLAMA, {"rope_parameters": {"rope_type": "linear", "factor": 2.5, "rope_theta": 500000.0}}
    ),
    "llama with yarn": TinyModel("Llama", ARCH.LLAMA, {"rope_parameters": YARN}),
    "mistral without a window": TinyModel("Mistral", ARCH.LLAMA, {"sliding_window": None}),
    "phi3 with longrope": TinyModel(
        "Phi3", ARCH.PHI3, {"rope_parameters": LONG_ROPE, "original_max_position_embeddings": ORIGINAL_LENGTH}
    ),
    "phi3 with a partial rotation, tied": TinyModel(
        "Phi3", ARCH.PHI3, {"partial_rotary_factor": 0.75, "tie_word_embeddings": True}
    ),
    "starcoder2 without biases": TinyModel(
        "Starcoder2", ARCH.STARCODER2, {"use_bias": False, "tie_word_embeddings": False}
    ),
}
# Those that only a folder of safetensors can be.
FOLDER_VARIANTS: dict[str, TinyModel] = {
    "qwen2 with windows from a layer on": TinyModel(
        "Qwen2",
        ARCH.QWEN2,
        {"num_hidden_layers": 3, "use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
    ),
    "phi with a tied head": TinyModel(
        "Phi", ARCH.PHI2, {"num_key_value_heads": 4, "tie_word_embeddings": True, "partial_rotary_factor": 0.5}
    ),
    "gemma with biases": TinyModel("Gemma", ARCH.GEMMA, {"head_dim": 16, "attention_bias": True}),
    "gemma2 without caps": TinyModel(
        "Gemma2",
        ARCH.GEMMA2,
        {
            "head_dim": 16,
            "query_pre_attn_scalar": 24,
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
            "layer_types": ["full_attention", "sliding_attention"],
            "sliding_window": WINDOW,
        },
    ),
    "phi3 with longrope and an attention factor": TinyModel(
        "Phi3",
        ARCH.PHI3,
        {
            "rope_parameters": LONG_ROPE | {"attention_factor": 1.25, "factor": 3.0},
            "original_max_position_embeddings": ORIGINAL_LENGTH,
        },
    ),
    "llama with yarn of its own strength": TinyModel(
        "Llama",
        ARCH.LLAMA,
        {"rope_parameters": YARN | {"mscale": 0.7, "mscale_all_dim": 1.2, "beta_fast": 20.0, "truncate": False}},
    ),
}


def write_gguf(
    model: Any,
    path: Path,
    arch: gguf.MODEL_ARCH,
    quantization: gguf.GGMLQuantizationType,
    vocabulary: Sequence[str] = (),
    pack: Pack | None = None,
) -> Any:
    """Write the file as llama.cpp's converter would; return the model with the weights that it dequantizes to.

    `vocabulary` are the tokens of a byte-level BPE; without it there is no tokenizer in the file. `pack` makes the rows
    of a matrix, where the `gguf` package does not quantize to the type.
    """
    config = model.config
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[arch])
    _write_metadata(writer, config, arch)
    if vocabulary:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("default")
        writer.add_token_list(list(vocabulary))
        writer.add_token_types([gguf.TokenType.NORMAL] * len(vocabulary))
        writer.add_token_merges(['! "'])
        writer.add_eos_token_id(len(vocabulary) - 1)
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    state: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        for own, part in _parts(name, tensor.numpy()):
            kind = quantization if part.ndim > 1 else gguf.GGMLQuantizationType.F32
            offset = np.float32(1) if own.endswith("norm.weight") and arch in (ARCH.GEMMA, ARCH.GEMMA2) else 0
            packed = pack(part, kind) if pack and part.ndim > 1 else gguf.quants.quantize(part + offset, kind)
            dense = np.asarray(gguf.quants.dequantize(packed, kind), np.float32).reshape(part.shape) - offset
            state.setdefault(name, torch.empty_like(tensor))
            _put(state[name], own, torch.from_numpy(dense))
            if arch == ARCH.LLAMA and own.endswith(("q_proj.weight", "q_proj.bias")):
                packed = permuted(packed, config.num_attention_heads)
            if arch == ARCH.LLAMA and own.endswith(("k_proj.weight", "k_proj.bias")):
                packed = permuted(packed, config.num_key_value_heads)
            named = names.get_name(own, try_suffixes=(".weight", ".bias"))
            assert named is not None, own
            writer.add_tensor(named, packed, raw_dtype=kind)
    _write_rope_tensors(writer, config)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    result = copy.deepcopy(model)
    missing, unexpected = result.load_state_dict(state, strict=False)
    assert not unexpected
    assert set(missing) <= {"lm_head.weight"}
    return result


def _parts(name: str, values: np.ndarray[Any, Any]) -> list[tuple[str, np.ndarray[Any, Any]]]:
    """What the converter sees of one parameter of transformers 5, which fuses the experts of a Mixtral."""
    layer = name.split(".")[2] if ".layers." in name else ""
    if name.endswith(".mlp.gate.weight"):
        return [(f"model.layers.{layer}.block_sparse_moe.gate.weight", values)]
    if name.endswith(".experts.gate_up_proj"):
        gate, up = np.split(values, 2, axis=1)
        return [
            (_expert_name(layer, "w1"), np.ascontiguousarray(gate)),
            (_expert_name(layer, "w3"), np.ascontiguousarray(up)),
        ]
    if name.endswith(".experts.down_proj"):
        return [(_expert_name(layer, "w2"), values)]
    return [(name, values)]


def _expert_name(layer: str, weight: str) -> str:
    return f"layers.{layer}.feed_forward.experts.{weight}.weight"


def _put(whole: Tensor, own: str, part: Tensor) -> None:
    """The reverse."""
    if own.endswith(("experts.w1.weight", "experts.w3.weight")):
        whole.chunk(2, dim=1)[own.endswith("w3.weight")].copy_(part)
    else:
        whole.copy_(part)


def _write_metadata(writer: gguf.GGUFWriter, config: Any, arch: gguf.MODEL_ARCH) -> None:
    """As `set_gguf_parameters` of the architecture's class in llama.cpp's conversion."""
    head_dim = getattr(config, "head_dim", None)
    default_head_dim = config.hidden_size // config.num_attention_heads
    rope = config.rope_parameters
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    if (eps := getattr(config, "rms_norm_eps", None)) is not None:
        writer.add_layer_norm_rms_eps(eps)
    else:
        writer.add_layer_norm_eps(getattr(config, "layer_norm_eps", None) or config.norm_epsilon)
    if arch in (ARCH.GEMMA, ARCH.GEMMA2):
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)
    if arch == ARCH.GEMMA2:
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
        writer.add_sliding_window(config.sliding_window)
    if arch in (ARCH.PHI2, ARCH.PHI3):
        writer.add_rope_dimension_count(int(rope.get("partial_rotary_factor", 1.0) * default_head_dim))
    if arch == ARCH.PHI3:
        writer.add_rope_freq_base(rope["rope_theta"])
        writer.add_rope_scaling_orig_ctx_len(config.original_max_position_embeddings)
        writer.add_sliding_window(config.sliding_window or 0)
    if arch in (ARCH.LLAMA, ARCH.QWEN2, ARCH.STARCODER2):
        writer.add_rope_freq_base(rope["rope_theta"])
        if head_dim is not None:
            writer.add_key_length(head_dim)
            writer.add_value_length(head_dim)
        if rope["rope_type"] in ("linear", "yarn"):
            writer.add_rope_scaling_type(gguf.RopeScalingType(rope["rope_type"]))
            writer.add_rope_scaling_factor(rope["factor"])
        if rope["rope_type"] == "yarn":
            writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
        # The converter leaves the window of a Mistral and of a StarCoder2 out; a file that has it means it.
        if (window := getattr(config, "sliding_window", None)) is not None:
            writer.add_sliding_window(window)
    if (experts := getattr(config, "num_local_experts", None)) is not None:
        writer.add_expert_count(experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
    if arch == ARCH.LLAMA:
        writer.add_vocab_size(config.vocab_size)
        writer.add_rope_dimension_count(head_dim or default_head_dim)


def _write_rope_tensors(writer: gguf.GGUFWriter, config: Any) -> None:
    """As `generate_extra_tensors`."""
    rope = config.rope_parameters
    if rope["rope_type"] == "longrope":
        ratio = config.max_position_embeddings / config.original_max_position_embeddings
        writer.add_rope_scaling_attn_factors(
            math.sqrt(1 + math.log(ratio) / math.log(config.original_max_position_embeddings))
        )
        writer.add_tensor("rope_factors_long.weight", np.array(rope["long_factor"], np.float32))
        writer.add_tensor("rope_factors_short.weight", np.array(rope["short_factor"], np.float32))
    if rope["rope_type"] == "llama3":
        factors = []
        for index in range(0, config.head_dim, 2):
            wavelength = 2 * math.pi * rope["rope_theta"] ** (index / config.head_dim)
            turns = rope["original_max_position_embeddings"] / wavelength
            blend = (turns - rope["low_freq_factor"]) / (rope["high_freq_factor"] - rope["low_freq_factor"])
            blend = min(max(blend, 0.0), 1.0)
            factors.append(1 / ((1 - blend) / rope["factor"] + blend))
        writer.add_tensor("rope_freqs.weight", np.array(factors, np.float32))
