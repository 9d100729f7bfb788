"""Which modules PEFT gives an adapter, on models that transformers builds without weights."""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from ordering_svc.domain.path_patterns import PathPattern
from ordering_svc.patterns.matching_process import answer

NUM_LAYERS = 3
CONFIG_CLASSES = {
    "gemma": "GemmaConfig",
    "gemma2": "Gemma2Config",
    "llama": "LlamaConfig",
    "mistral": "MistralConfig",
    "mixtral": "MixtralConfig",
    "phi": "PhiConfig",
    "phi3": "Phi3Config",
    "qwen2": "Qwen2Config",
    "starcoder2": "Starcoder2Config",
}


@functools.cache
def _built(architecture: str) -> Any:
    import torch
    import transformers

    config_class: Any = getattr(transformers, CONFIG_CLASSES[architecture])
    config = config_class(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=NUM_LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=64,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    with torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(config)


def module_names(architecture: str) -> tuple[str, ...]:
    """`named_modules()` of the model, without the model itself."""
    return tuple(name for name, _module in _built(architecture).named_modules() if name)


def counted_by_peft(architecture: str, **config: Any) -> dict[str, int] | None:
    """What the reference system's `create_ordering.py` counts for a LoraConfig; None where PEFT refuses it."""
    import torch
    from peft import LoraConfig, inject_adapter_in_model
    from peft.tuners import lora

    model: Any = copy.deepcopy(_built(architecture))
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            inject_adapter_in_model(LoraConfig(**config, init_lora_weights=False), model)
        except ValueError:
            return None
    counted: dict[str, int] = {}
    for name, module in model.named_modules():
        if isinstance(module, lora.Linear | lora.Embedding | lora.Conv2d):
            counted[name] = len(counted)
    return counted


def match_here(patterns: Sequence[PathPattern], paths: Sequence[str]) -> Sequence[Mapping[str, str | None]]:
    """A matcher in this process, for patterns that the tests wrote."""
    found = answer([(pattern.expression, pattern.is_whole) for pattern in patterns], paths)
    return [{paths[place]: group for place, group in hits} for hits in found["answers"]]
