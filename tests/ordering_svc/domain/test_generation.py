"""Generated layers are those that PEFT counts on the model that transformers builds, without any weights."""

from __future__ import annotations

import warnings
from typing import Any

import pytest

from ordering_svc.domain.architectures import LAYER_MODULES, ModelStructure
from ordering_svc.domain.generation import generate
from ordering_svc.domain.ordering import LayerRow
from ordering_svc.errors import TargetModulesUnmatched, TooManyLayers

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


def counted_by_peft(architecture: str, target_modules: list[str]) -> dict[str, int]:
    """What the reference system's `create_ordering.py` counts, on the meta device."""
    import torch
    import transformers
    from peft import LoraConfig
    from peft.tuners import lora

    config_class: Any = getattr(transformers, CONFIG_CLASSES[architecture])
    config = config_class(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=64,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model: Any = transformers.AutoModelForCausalLM.from_config(config)
        model.add_adapter(LoraConfig(target_modules=target_modules, init_lora_weights=False), "default")
    counted: dict[str, int] = {}
    for name, module in model.named_modules():
        if isinstance(module, lora.Linear | lora.Embedding | lora.Conv2d):
            counted[name] = len(counted)
    return counted


@pytest.mark.parametrize("architecture", sorted(CONFIG_CLASSES))
def test_all_modules_stand_in_the_order_in_which_peft_visits_them(architecture: str) -> None:
    targets = [module.rpartition(".")[2] for module in LAYER_MODULES[architecture]] + ["lm_head", "embed_tokens"]
    document = generate(ModelStructure(architecture, 3), targets, ["a"], "m")

    assert document.layers is not None
    assert [(layer.path, layer.row) for layer in document.layers] == list(
        counted_by_peft(architecture, targets).items()
    )


@pytest.mark.parametrize(
    ("architecture", "targets"),
    [
        ("llama", ["v_proj", "q_proj"]),
        ("phi3", ["qkv_proj", "o_proj"]),
        ("mistral", ["self_attn.k_proj", "model.layers.1.mlp.up_proj", "0.mlp.down_proj"]),
        ("gemma", ["lm_head", "gate_proj"]),
    ],
)
def test_targets_match_as_pefts_list_does(architecture: str, targets: list[str]) -> None:
    document = generate(ModelStructure(architecture, 3), targets, [], "m")

    assert document.layers is not None
    assert {layer.path: layer.row for layer in document.layers} == counted_by_peft(architecture, targets)


def test_every_architecture_of_the_table_is_checked() -> None:
    assert set(CONFIG_CLASSES) == set(LAYER_MODULES)


def test_names_and_base_model_stand_in_the_document() -> None:
    document = generate(ModelStructure("llama", 1), ["lm_head"], ["math", "bio"], "org/model")
    assert document.order == ("math", "bio")
    assert document.layers == (LayerRow("lm_head", 0),)
    assert document.base_model_id == "org/model"
    assert document.preload_adapters is None


def test_a_target_that_matches_nothing_is_named_with_what_there_is() -> None:
    with pytest.raises(TargetModulesUnmatched) as raised:
        generate(ModelStructure("phi3", 1), ["o_proj", "q_proj", "_proj"], [], "m")
    assert [violation.field for violation in raised.value.violations] == ["target_modules[1]", "target_modules[2]"]
    assert "'q_proj'" in raised.value.message
    assert "o_proj, qkv_proj, gate_up_proj, down_proj, embed_tokens, lm_head" in raised.value.message


def test_more_layers_than_an_ordering_can_name_are_refused() -> None:
    deep = ModelStructure("llama", 9363)  # 7 modules each: 65541
    targets = [module.rpartition(".")[2] for module in deep.layer_modules]
    with pytest.raises(TooManyLayers, match="65541"):
        generate(deep, targets, [], "m")
