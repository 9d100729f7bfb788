"""Reads config.json of a Hugging Face checkpoint: what changes the result is understood, or refused by name.

What the class of transformers for a `model_type` does not read cannot change its result, so other keys are left alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from inference_svc.models.architecture import Architecture
from inference_svc.models.config import ModelConfig
from inference_svc.models.rope_settings import rope_of_config
from inference_svc.models.settings import MAX_CONTEXT, MAX_LAYERS, MAX_WIDTH, Settings
from inference_svc.weights.source import TensorSource

# Names of transformers (`ACT2FN`) for what we have.
ACTIVATIONS: Mapping[str, str] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}
# Refused if they say something: why.
REFUSED: Mapping[str, str] = {
    "quantization_config": "the weights are packed in another format than safetensors' own or GGUF",
    "use_bidirectional_attention": "attention is causal",
    "qk_layernorm": "queries and keys have no norm of their own",
    "rope_interleaved": "rotary positions turn the first half of a head against the second",
    "add_cross_attention": "there is no encoder",
    "pruned_heads": "all layers have the same number of heads",
}
_BIAS_DEFAULTS: Mapping[str, bool] = {"attention_bias": False, "mlp_bias": False, "use_bias": True}


def hugging_face_config(architecture: Architecture, source: TensorSource) -> ModelConfig:
    """The config that config.json states.

    Raises:
        MalformedFile: a key is missing, of the wrong type, or nonsensical.
        UnsupportedFile: a key asks for something that is not supported.
    """
    settings = Settings(str(source.path), source.metadata, "key of config.json")
    for key, why in REFUSED.items():
        if settings.get(key):
            raise settings.unsupported(key, why)
    hidden = settings.count("hidden_size", MAX_WIDTH)
    num_layers = settings.count("num_hidden_layers", MAX_LAYERS)
    num_heads = settings.count("num_attention_heads", MAX_WIDTH)
    head_dim = _head_dim(settings, hidden, num_heads)
    context_length = settings.count("max_position_embeddings", MAX_CONTEXT)
    tied = settings.flag("tie_word_embeddings", architecture.tied_by_default)
    config = ModelConfig(
        architecture=architecture.name,
        hidden_size=hidden,
        intermediate_size=settings.count("intermediate_size", MAX_WIDTH),
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=_num_kv_heads(settings, num_heads),
        head_dim=head_dim,
        vocab_size=settings.count("vocab_size", MAX_WIDTH),
        context_length=context_length,
        # Where both are there, they may differ, and both are used: as transformers does.
        tied_embeddings=tied and "lm_head.weight" not in source.entries,
        norm_eps=settings.number(architecture.eps_key, architecture.default_eps),
        rope=rope_of_config(
            settings,
            head_dim,
            context_length,
            theta=architecture.default_theta,
            rotary_part=architecture.rotary_part,
        ),
        attention_scale=head_dim**-0.5,
        windows=architecture.windows(settings, num_layers),
        activation=_activation(architecture, settings),
        biased=_biased(architecture, settings),
        embedding_scale=math.sqrt(hidden) if architecture.scales_embedding else 1.0,
    )
    _refuse_other_layer_types(settings, config)
    return config if architecture.refine is None else architecture.refine(settings, config)


def _head_dim(settings: Settings, hidden: int, num_heads: int) -> int:
    if settings.get("head_dim") is None and hidden % num_heads:
        raise settings.malformed("num_attention_heads", f"a divisor of {hidden} hidden features", num_heads)
    head_dim = settings.count("head_dim", MAX_WIDTH, hidden // num_heads or 1)
    if head_dim % 2:
        raise settings.malformed("head_dim", "an even number", head_dim)
    return head_dim


def _num_kv_heads(settings: Settings, num_heads: int) -> int:
    value = settings.count("num_key_value_heads", num_heads, num_heads)
    if num_heads % value:
        raise settings.malformed("num_key_value_heads", f"a divisor of {num_heads} heads", value)
    return value


def _activation(architecture: Architecture, settings: Settings) -> str:
    key = architecture.activation_key
    name = settings.get(key)
    if name is None:
        return architecture.activation
    if not isinstance(name, str) or name not in ACTIVATIONS:
        raise settings.unsupported(key, f"of the activations, {', '.join(ACTIVATIONS)} are")
    if architecture.name == "gemma" and name == "gelu":  # its first files mean this; transformers reads them so
        return "gelu_tanh"
    return ACTIVATIONS[name]


def _biased(architecture: Architecture, settings: Settings) -> frozenset[str]:
    def has_bias(bias: bool | str) -> bool:
        return settings.flag(bias, _BIAS_DEFAULTS[bias]) if isinstance(bias, str) else bias

    return frozenset(module.path for module in architecture.linear if has_bias(module.bias))


def _refuse_other_layer_types(settings: Settings, config: ModelConfig) -> None:
    """Transformers ignores `layer_types` where the class has no alternating layers; what it says must not differ."""
    stated = settings.get("layer_types")
    if isinstance(stated, list) and len(set(map(repr, stated))) > 1 and len(set(config.windows)) == 1:
        raise settings.unsupported("layer_types", f"all layers of a {config.architecture} are alike")
