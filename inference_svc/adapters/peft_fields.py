"""Every field of PEFT's `LoraConfig` (0.21.2), and what this service does with it.

A key that is in none of the three tables is unknown: refused, unless it says nothing (null, false, 0, empty).
"""

from __future__ import annotations

from collections.abc import Mapping

# Read, checked and applied.
UNDERSTOOD = frozenset(
    {
        "alpha_pattern",
        "base_model_name_or_path",
        "bias",
        "ensure_weight_tying",
        "exclude_modules",
        "fan_in_fan_out",
        "init_lora_weights",
        "layers_pattern",
        "layers_to_transform",
        "lora_alpha",
        "peft_type",
        "r",
        "rank_pattern",
        "target_modules",
        "target_parameters",
        "task_type",
        "use_dora",
        "use_rslora",
    }
)

# They say how the adapter was made; what a trained adapter computes does not depend on them.
IGNORED: Mapping[str, str] = {
    "auto_mapping": "which classes of transformers load the base model",
    "corda_config": "settings of an initialisation, which `init_lora_weights` names",
    "eva_config": "settings of an initialisation, which `init_lora_weights` names",
    "inference_mode": "whether PEFT freezes the adapter",
    "loftq_config": "settings of an initialisation, which `init_lora_weights` names",
    "lora_dropout": "active in training only",
    "lora_ga_config": "settings of an initialisation, which `init_lora_weights` names",
    "megatron_core": "the name of a package, of use with `megatron_config` alone",
    "peft_version": "who wrote the file",
    "qalora_group_size": "of use with `use_qalora` alone",
    "revision": "the revision of the base model's repository",
    "runtime_config": "where PEFT computes; it is not saved",
}

# Refused if they say something: why.
REFUSED: Mapping[str, str] = {
    "alora_invocation_tokens": "an activated LoRA starts in the middle of a prompt",
    "arrow_config": "Arrow routes between adapters by a method of its own",
    "kasa_config": "KaSA truncates the base weights and puts a diagonal between A and B",
    "layer_replication": "it makes another base model, with layers repeated",
    "lora_bias": "a bias on B cannot be applied; train with `lora_bias` false",
    "megatron_config": "layers of Megatron are not those of this base model",
    "modules_to_save": "modules that were trained whole cannot be applied; train them as LoRA targets",
    "monteclora_config": "MonteCLoRA samples its weights",
    "trainable_token_indices": "trained rows of the embedding cannot be applied",
    "use_bdlora": "block-diagonal LoRA is another product",
    "use_qalora": "QA-LoRA pools the inputs of A",
    "velora_config": "VeLoRA keeps tensors of its own in the file",
}

# Initialisations that leave the base weights alone; a trained adapter is then plain LoRA. The others (pissa, olora,
# corda, loftq, lora_ga) change the base weights when PEFT loads the adapter; one that was converted on saving says
# `true` instead.
PLAIN_INITS = ("gaussian", "orthogonal", "eva", "mica")
