"""Translates GGUF metadata to the keys of a `config.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from ordering_svc.domain.ordering import digest_of
from ordering_svc.errors import ModelConfigInvalid
from ordering_svc.model_config.gguf_header import ArrayLength, GgufHeader, read_gguf_header
from ordering_svc.model_config.model import Model, hidden_size_of, structure_of

# Mistral files call themselves llama, and their modules are the same.
MODEL_TYPES: Mapping[str, str] = {"phi2": "phi"}
NUMBERS: Mapping[str, str] = {
    "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "context_length": "max_position_embeddings",
    "vocab_size": "vocab_size",
}


def model_of_gguf(path: Path, model_id: str) -> Model:
    """The model in a GGUF file, from its header only.

    Raises:
        ModelConfigInvalid: the header is malformed, or lacks the architecture or the number of layers.
        ArchitectureUnknown: there is no table for its architecture.
        OSError: the file cannot be read.
    """
    config = config_of_gguf(read_gguf_header(path), path.name)
    digest = digest_of(json.dumps(config, sort_keys=True, separators=(",", ":")).encode())
    return Model(structure_of(config, path.name), digest, model_id, hidden_size_of(config))


def config_of_gguf(header: GgufHeader, source: str) -> Mapping[str, object]:
    """The header in the shape of a `config.json`: architecture, sizes, whether the output head is tied.

    Raises:
        ModelConfigInvalid: the header does not say the architecture.
    """
    architecture = header.metadata.get("general.architecture")
    if not isinstance(architecture, str):
        raise ModelConfigInvalid("model", f"the GGUF file {source!r} does not say its general.architecture")
    config: dict[str, object] = {"model_type": MODEL_TYPES.get(architecture, architecture)}
    for gguf_key, key in NUMBERS.items():
        value = header.metadata.get(f"{architecture}.{gguf_key}")
        if type(value) is int:
            config[key] = value
    experts = header.metadata.get(f"{architecture}.expert_count")
    if architecture == "llama" and type(experts) is int and experts > 0:
        config |= {"model_type": "mixtral", "num_local_experts": experts}
    tokens = header.metadata.get("tokenizer.ggml.tokens")
    if "vocab_size" not in config and isinstance(tokens, ArrayLength):
        config["vocab_size"] = tokens.count
    if header.tensors:  # the first part of a split file may have none
        config["tie_word_embeddings"] = "output.weight" not in header.tensors
    return config
