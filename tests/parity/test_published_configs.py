"""config.json as the publishers of well-known models wrote it: understood, and asking for what transformers asks for.

The model of transformers is built on the meta device, so that no weight is made: its parameters must be the tensors
that we expect in the files, with the same shapes. What transformers 5 fuses, a Mixtral's experts, is left out.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from inference_svc.models.architectures import ARCHITECTURES
from inference_svc.models.config import ModelConfig
from inference_svc.models.loading import read_config
from inference_svc.models.tensor_plan import planned_tensors
from inference_svc.weights.source import SourceFormat
from tests.inference_svc.models.memory_source import MemorySource

pytestmark = pytest.mark.filterwarnings("ignore")  # transformers has opinions on some of these files
COMMON: dict[str, Any] = {
    "attention_dropout": 0.0,
    "initializer_range": 0.02,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.41.0",
    "use_cache": True,
}
LLAMA3 = {
    "factor": 8.0,
    "high_freq_factor": 4.0,
    "low_freq_factor": 1.0,
    "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}
LONG = {"long_factor": [1.0 + i / 4 for i in range(48)], "short_factor": [1.0 + i / 40 for i in range(48)]}

PUBLISHED: dict[str, dict[str, Any]] = {
    "meta-llama/Llama-2-7b": {
        "architectures": ["LlamaForCausalLM"], "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu",
        "hidden_size": 4096, "intermediate_size": 11008, "max_position_embeddings": 4096, "model_type": "llama",
        "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 32, "pretraining_tp": 1,
        "rms_norm_eps": 1e-05, "rope_scaling": None, "tie_word_embeddings": False, "vocab_size": 32000,
    },
    "meta-llama/Llama-3.1-8B-Instruct": {
        "attention_bias": False, "bos_token_id": 128000, "eos_token_id": [128001, 128008, 128009],
        "hidden_act": "silu", "hidden_size": 4096, "intermediate_size": 14336, "max_position_embeddings": 131072,
        "mlp_bias": False, "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 32,
        "num_key_value_heads": 8, "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_scaling": LLAMA3,
        "rope_theta": 500000.0, "tie_word_embeddings": False, "vocab_size": 128256,
    },
    "meta-llama/Llama-3.2-1B": {
        "head_dim": 64, "hidden_act": "silu", "hidden_size": 2048, "intermediate_size": 8192,
        "max_position_embeddings": 131072, "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 16,
        "num_key_value_heads": 8, "rms_norm_eps": 1e-05, "rope_scaling": LLAMA3 | {"factor": 32.0},
        "rope_theta": 500000.0, "tie_word_embeddings": True, "vocab_size": 128256,
    },
    "HuggingFaceTB/SmolLM2-135M-Instruct": {
        "hidden_act": "silu", "hidden_size": 576, "intermediate_size": 1536, "is_llama_config": True,
        "max_position_embeddings": 8192, "mlp_bias": False, "model_type": "llama", "num_attention_heads": 9,
        "num_hidden_layers": 30, "num_key_value_heads": 3, "pad_token_id": 2, "rms_norm_eps": 1e-05,
        "rope_interleaved": False, "rope_scaling": None, "rope_theta": 100000, "tie_word_embeddings": True,
        "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16"}}, "vocab_size": 49152,
    },
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0": {
        "hidden_act": "silu", "hidden_size": 2048, "intermediate_size": 5632, "max_position_embeddings": 2048,
        "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 22, "num_key_value_heads": 4,
        "rms_norm_eps": 1e-05, "rope_scaling": None, "rope_theta": 10000.0, "tie_word_embeddings": False,
        "vocab_size": 32000,
    },
    "mistralai/Mistral-7B-v0.1": {
        "hidden_act": "silu", "hidden_size": 4096, "intermediate_size": 14336, "max_position_embeddings": 32768,
        "model_type": "mistral", "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8,
        "rms_norm_eps": 1e-05, "rope_theta": 10000.0, "sliding_window": 4096, "tie_word_embeddings": False,
        "vocab_size": 32000,
    },
    "mistralai/Mistral-Nemo-Instruct-2407": {
        "head_dim": 128, "hidden_act": "silu", "hidden_size": 5120, "intermediate_size": 14336,
        "max_position_embeddings": 131072, "model_type": "mistral", "num_attention_heads": 32,
        "num_hidden_layers": 40, "num_key_value_heads": 8, "rms_norm_eps": 1e-05, "rope_theta": 1000000.0,
        "sliding_window": None, "tie_word_embeddings": False, "vocab_size": 131072,
    },
    "microsoft/Phi-3-mini-4k-instruct": {
        "attention_bias": False, "auto_map": {"AutoConfig": "configuration_phi3.Phi3Config"}, "embd_pdrop": 0.0,
        "hidden_act": "silu", "hidden_size": 3072, "intermediate_size": 8192, "max_position_embeddings": 4096,
        "model_type": "phi3", "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 32,
        "original_max_position_embeddings": 4096, "resid_pdrop": 0.0, "rms_norm_eps": 1e-05, "rope_scaling": None,
        "rope_theta": 10000.0, "sliding_window": 2047, "tie_word_embeddings": False, "vocab_size": 32064,
    },
    "microsoft/Phi-3-mini-128k-instruct": {
        "hidden_act": "silu", "hidden_size": 3072, "intermediate_size": 8192, "max_position_embeddings": 131072,
        "model_type": "phi3", "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 32,
        "original_max_position_embeddings": 4096, "rms_norm_eps": 1e-05, "rope_scaling": {**LONG, "type": "longrope"},
        "rope_theta": 10000.0, "sliding_window": 262144, "tie_word_embeddings": False, "vocab_size": 32064,
    },
    "microsoft/Phi-3-medium-4k-instruct": {
        "hidden_act": "silu", "hidden_size": 5120, "intermediate_size": 17920, "max_position_embeddings": 4096,
        "model_type": "phi3", "num_attention_heads": 40, "num_hidden_layers": 40, "num_key_value_heads": 10,
        "original_max_position_embeddings": 4096, "rms_norm_eps": 1e-05, "rope_scaling": None, "rope_theta": 10000.0,
        "sliding_window": 2047, "tie_word_embeddings": False, "vocab_size": 32064,
    },
    "microsoft/Phi-4-mini-instruct": {
        "attention_bias": False, "full_attn_mod": 1, "hidden_act": "silu", "hidden_size": 3072,
        "intermediate_size": 8192, "interpolate_factor": 1, "lm_head_bias": False, "max_position_embeddings": 131072,
        "mlp_bias": False, "model_type": "phi3", "num_attention_heads": 24, "num_hidden_layers": 32,
        "num_key_value_heads": 8, "original_max_position_embeddings": 4096, "partial_rotary_factor": 0.75,
        "rms_norm_eps": 1e-05, "rope_scaling": {**LONG, "type": "longrope"}, "rope_theta": 10000.0,
        "sliding_window": 262144, "tie_word_embeddings": True, "vocab_size": 200064,
    },
    "google/gemma-2b": {
        "attention_bias": False, "head_dim": 256, "hidden_act": "gelu", "hidden_size": 2048,
        "intermediate_size": 16384, "max_position_embeddings": 8192, "model_type": "gemma", "num_attention_heads": 8,
        "num_hidden_layers": 18, "num_key_value_heads": 1, "rms_norm_eps": 1e-06, "rope_scaling": None,
        "rope_theta": 10000.0, "vocab_size": 256000,
    },
    "google/gemma-2-2b-it": {
        "attention_bias": False, "attn_logit_softcapping": 50.0, "cache_implementation": "hybrid",
        "final_logit_softcapping": 30.0, "head_dim": 256, "hidden_act": "gelu_pytorch_tanh",
        "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 2304, "intermediate_size": 9216,
        "max_position_embeddings": 8192, "model_type": "gemma2", "num_attention_heads": 8, "num_hidden_layers": 26,
        "num_key_value_heads": 4, "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-06, "rope_theta": 10000.0,
        "sliding_window": 4096, "vocab_size": 256000,
    },
    "Qwen/Qwen2.5-0.5B-Instruct": {
        "hidden_act": "silu", "hidden_size": 896, "intermediate_size": 4864, "max_position_embeddings": 32768,
        "max_window_layers": 21, "model_type": "qwen2", "num_attention_heads": 14, "num_hidden_layers": 24,
        "num_key_value_heads": 2, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0, "sliding_window": 32768,
        "tie_word_embeddings": True, "use_sliding_window": False, "vocab_size": 151936,
    },
    "microsoft/phi-2": {
        "embd_pdrop": 0.0, "hidden_act": "gelu_new", "hidden_size": 2560, "intermediate_size": 10240,
        "layer_norm_eps": 1e-05, "max_position_embeddings": 2048, "model_type": "phi", "num_attention_heads": 32,
        "num_hidden_layers": 32, "num_key_value_heads": 32, "partial_rotary_factor": 0.4, "qk_layernorm": False,
        "resid_pdrop": 0.1, "rope_scaling": None, "rope_theta": 10000.0, "tie_word_embeddings": False,
        "vocab_size": 51200,
    },
    "bigcode/starcoder2-3b": {
        "activation_function": "gelu", "embedding_dropout": 0.1, "hidden_act": "gelu_pytorch_tanh",
        "hidden_size": 3072, "intermediate_size": 12288, "max_position_embeddings": 16384, "mlp_type": "default",
        "model_type": "starcoder2", "norm_epsilon": 1e-05, "norm_type": "layer_norm", "num_attention_heads": 24,
        "num_hidden_layers": 30, "num_key_value_heads": 2, "residual_dropout": 0.1, "rope_theta": 999999.4420358813,
        "sliding_window": 4096, "use_bias": True, "vocab_size": 49152,
    },
    "mistralai/Mixtral-8x7B-Instruct-v0.1": {
        "hidden_act": "silu", "hidden_size": 4096, "intermediate_size": 14336, "max_position_embeddings": 32768,
        "model_type": "mixtral", "num_attention_heads": 32, "num_experts_per_tok": 2, "num_hidden_layers": 32,
        "num_key_value_heads": 8, "num_local_experts": 8, "output_router_logits": False, "rms_norm_eps": 1e-05,
        "rope_theta": 1000000.0, "router_aux_loss_coef": 0.02, "sliding_window": None, "tie_word_embeddings": False,
        "vocab_size": 32000,
    },
}  # fmt: skip


def read(name: str) -> ModelConfig:
    return read_config(MemorySource(SourceFormat.HUGGING_FACE, COMMON | PUBLISHED[name], path=Path(name)))


@pytest.mark.parametrize("name", PUBLISHED)
def test_its_tensors_are_the_parameters_of_the_model_in_transformers(name: str) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    ours = read(name)
    theirs = AutoConfig.for_model(**copy.deepcopy(COMMON | PUBLISHED[name]))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(theirs)
    parameters = {key: tuple(tensor.shape) for key, tensor in model.named_parameters() if ".mlp.experts." not in key}
    parameters = {key.replace(".mlp.gate.", ".block_sparse_moe.gate."): shape for key, shape in parameters.items()}
    planned = planned_tensors(ARCHITECTURES[ours.architecture], ours, MemorySource(SourceFormat.HUGGING_FACE, {}))
    assert parameters == {tensor.name: tensor.source_shape for tensor in planned if ".experts." not in tensor.name}
    assert ours.rope.theta == theirs.rope_parameters["rope_theta"]
    assert 2 * len(model.model.rotary_emb.inv_freq) == ours.rope.dim


def test_what_sets_these_models_apart_is_in_their_configs() -> None:
    assert read("mistralai/Mistral-7B-v0.1").windows[0] == 4096
    assert read("mistralai/Mistral-Nemo-Instruct-2407").query_size == 4096
    assert read("microsoft/Phi-3-mini-4k-instruct").windows[0] == 2047
    assert read("microsoft/Phi-3-mini-4k-instruct").rope.switch_length is None
    assert read("microsoft/Phi-3-mini-128k-instruct").rope.switch_length == 4096
    assert read("google/gemma-2b").activation == "gelu_tanh"
    assert read("google/gemma-2-2b-it").windows[:3] == (4096, None, 4096)
    assert set(read("Qwen/Qwen2.5-0.5B-Instruct").windows) == {None}
    assert read("microsoft/phi-2").rope.dim == 32
    assert read("mistralai/Mixtral-8x7B-Instruct-v0.1").experts_per_token == 2
