"""Reads the metadata of a GGUF file: what it says of the model is understood, or refused by name."""

from __future__ import annotations

import math

from inference_svc.models.architecture import Architecture
from inference_svc.models.config import ModelConfig
from inference_svc.models.rope_settings import rope_of_gguf
from inference_svc.models.settings import MAX_CONTEXT, MAX_LAYERS, MAX_WIDTH, Settings
from inference_svc.weights.errors import MalformedFile
from inference_svc.weights.source import TensorSource

EMBEDDING, HEAD = "token_embd.weight", "output.weight"
# They say nothing that the result depends on, or repeat what the tensors say.
_IRRELEVANT = (
    "vocab_size",
    "tensor_data_layout",
    "attention.layer_norm_epsilon",  # that of the norms which the architecture has is asked for
    "attention.layer_norm_rms_epsilon",
    "rope.scaling.finetuned",
    "rope.scaling.original_context_length",
)


def gguf_config(architecture: Architecture, source: TensorSource) -> ModelConfig:
    """The config that a GGUF file states.

    Raises:
        MalformedFile: a key is missing, of the wrong type, or nonsensical.
        UnsupportedFile: a key asks for something that is not supported, or is not known.
    """
    settings = Settings(str(source.path), source.metadata, "metadata key", f"{architecture.gguf_name}.")
    hidden = settings.count("embedding_length", MAX_WIDTH)
    num_layers = settings.count("block_count", MAX_LAYERS)
    num_heads = settings.count("attention.head_count", MAX_WIDTH)
    num_kv_heads = settings.count("attention.head_count_kv", num_heads, num_heads)
    if num_heads % num_kv_heads or (hidden % num_heads and not settings.has("attention.key_length")):
        raise MalformedFile(
            str(source.path),
            f"{num_heads} heads do not go with {num_kv_heads} key and value heads and {hidden} hidden features",
        )
    head_dim = _head_dim(settings, hidden // num_heads)
    context_length = settings.count("context_length", MAX_CONTEXT)
    embedding = source.entries.get(EMBEDDING)
    if embedding is None:
        raise MalformedFile(str(source.path), f"tensor {EMBEDDING!r} is missing")
    config = ModelConfig(
        architecture=architecture.name,
        hidden_size=hidden,
        intermediate_size=settings.count("feed_forward_length", MAX_WIDTH),
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        vocab_size=embedding.shape[0],
        context_length=context_length,
        tied_embeddings=HEAD not in source.entries,
        norm_eps=settings.number(architecture.gguf_eps_key),
        rope=rope_of_gguf(
            settings, source, head_dim, context_length, may_be_partial=architecture.rotary_part is not None
        ),
        attention_scale=head_dim**-0.5,
        windows=architecture.gguf_windows(settings, num_layers),
        activation=architecture.activation,
        biased=_biased(architecture, source),
        embedding_scale=math.sqrt(hidden) if architecture.scales_embedding else 1.0,
    )
    if architecture.gguf_refine is not None:
        config = architecture.gguf_refine(settings, config)
    _refuse_unknown_keys(settings)
    return config


def _head_dim(settings: Settings, default: int) -> int:
    head_dim = settings.count("attention.key_length", MAX_WIDTH, default)
    if head_dim % 2:
        raise settings.malformed("attention.key_length", "an even number", head_dim)
    if settings.count("attention.value_length", MAX_WIDTH, head_dim) != head_dim:
        raise settings.unsupported("attention.value_length", f"keys and values have the same width, {head_dim}")
    return head_dim


def _biased(architecture: Architecture, source: TensorSource) -> frozenset[str]:
    """Where an architecture may have a bias or not, the first block tells; the others must be like it."""
    return frozenset(
        module.path
        for module in architecture.linear
        if module.bias is True or (module.bias and f"blk.0.{module.gguf}.bias" in source.entries)
    )


def _refuse_unknown_keys(settings: Settings) -> None:
    """A key of the architecture that nobody asked for may change the result, unless it says nothing."""
    if not settings.flag("attention.causal", True):
        raise settings.unsupported("attention.causal", "attention is causal")
    known = settings.used | {settings.prefix + key for key in _IRRELEVANT}
    for key, value in settings.values.items():
        if key.startswith(settings.prefix) and key not in known and value not in (0, False, "", []):
            raise settings.unsupported(key.removeprefix(settings.prefix), "what it means is not known")
