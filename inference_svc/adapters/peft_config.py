"""`adapter_config.json` of a PEFT LoRA adapter: what changes the maths is understood or refused by name."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from inference_svc.adapters.config_file import ConfigFile, as_float, is_finite_number, read_config
from inference_svc.adapters.peft_patterns import ModulePatterns, PatternError, compile_patterns
from inference_svc.errors import AdapterMalformed, AdapterUnsupported

CONFIG_NAME = "adapter_config.json"

_UNDERSTOOD = frozenset(
    {
        "alpha_pattern",
        "base_model_name_or_path",
        "bias",
        "fan_in_fan_out",
        "init_lora_weights",
        "layers_to_transform",
        "lora_alpha",
        "peft_type",
        "r",
        "rank_pattern",
        "target_modules",
        "task_type",
        "use_rslora",
    }
)
# They say how the adapter was made or which modules were chosen; the tensors already answer both.
_HARMLESS = frozenset(
    {
        "auto_mapping",
        "corda_config",
        "eva_config",
        "exclude_modules",
        "inference_mode",
        "layers_pattern",
        "loftq_config",
        "lora_dropout",
        "lora_ga_config",
        "megatron_core",
        "peft_version",
        "qalora_group_size",
        "revision",
    }
)
# These change the base weights when PEFT loads the adapter; an adapter converted on saving says `true` instead.
_PLAIN_INITS = ("gaussian", "orthogonal", "eva")


@dataclass(frozen=True, slots=True)
class PeftLoraConfig:
    """The fields of a PEFT `LoraConfig` that matter at inference."""

    r: int
    lora_alpha: float
    use_rslora: bool
    rank_pattern: ModulePatterns
    alpha_pattern: ModulePatterns
    base_model_id: str  # empty: not said
    task_type: str
    target_modules: tuple[str, ...]  # informational: the tensors are the truth; a regex is its only entry
    layers_to_transform: tuple[int, ...]  # informational, like target_modules

    def rank_for(self, path: str) -> int:
        """LoRA rank of a module."""
        return int(self.rank_pattern.value_for(path, self.r))

    def scale_for(self, path: str) -> float:
        """What B A x is multiplied by: alpha / r, or alpha / sqrt(r) with rank-stabilised LoRA."""
        rank = self.rank_for(path)
        alpha = self.alpha_pattern.value_for(path, self.lora_alpha)
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)


def read_peft_config(folder: Path) -> PeftLoraConfig:
    """Read `adapter_config.json` in an adapter's folder.

    Raises:
        SourceNotFound: there is no such file.
        AdapterMalformed: the file, a key or a value is broken; names file, key and value.
        AdapterUnsupported: it asks for something beyond plain LoRA; names the key.
    """
    config = read_config(folder / CONFIG_NAME, f"{folder.name}/{CONFIG_NAME}")
    _refuse_unsupported(config)
    return PeftLoraConfig(
        r=config.integer("r", 8, minimum=1),
        lora_alpha=config.number("lora_alpha", 8),
        use_rslora=config.boolean("use_rslora", False),
        rank_pattern=_patterns(config, "rank_pattern", whole=True),
        alpha_pattern=_patterns(config, "alpha_pattern", whole=False),
        base_model_id=config.text("base_model_name_or_path", ""),
        task_type=config.text("task_type", ""),
        target_modules=_names(config, "target_modules"),
        layers_to_transform=_indices(config, "layers_to_transform"),
    )


def _refuse_unsupported(config: ConfigFile) -> None:
    def refuse(key: str, why: str) -> None:
        value = str(config.values.get(key))[:100]
        raise AdapterUnsupported(
            f"{config.name}: `{key}` {value!r} is not supported: {why}", file=config.name, key=key, value=value
        )

    peft_type = config.text("peft_type", "LORA")
    if peft_type != "LORA":
        refuse("peft_type", "only LORA adapters are")
    if config.text("task_type", "CAUSAL_LM") != "CAUSAL_LM":
        refuse("task_type", "the base model generates text, CAUSAL_LM")
    if config.text("bias", "none") != "none":
        refuse("bias", "adapters that train biases cannot be applied; train with bias `none`")
    if config.boolean("fan_in_fan_out", False):
        refuse("fan_in_fan_out", "the base model's linear layers store (out, in)")
    init = config.values.get("init_lora_weights", True)
    if not isinstance(init, bool) and init is not None and (not isinstance(init, str) or init not in _PLAIN_INITS):
        refuse("init_lora_weights", "it changes the base weights; convert the adapter to plain LoRA when saving it")
    config.refuse_unknown(_UNDERSTOOD | _HARMLESS)


def _patterns(config: ConfigFile, key: str, *, whole: bool) -> ModulePatterns:
    value = config.values.get(key)
    if value is None:
        return ModulePatterns()
    if not isinstance(value, Mapping):
        config.refuse(key, "an object of patterns")
    for pattern, number in value.items():
        fits = isinstance(number, int) and number >= 1 if whole else True
        if not is_finite_number(number) or not fits:
            wanted = "an integer of at least 1" if whole else "a finite number"
            raise AdapterMalformed(
                f"{config.name}: `{key}` has {number!r} for {pattern[:100]!r}, expected {wanted}",
                file=config.name,
                key=f"{key}.{pattern[:100]}",
                value=str(number)[:100],
            )
    try:
        return compile_patterns({pattern: as_float(number) for pattern, number in value.items()})
    except PatternError as error:
        raise AdapterMalformed(f"{config.name}: `{key}`: {error}", file=config.name, key=key) from error


def _names(config: ConfigFile, key: str) -> tuple[str, ...]:
    value = config.values.get(key)
    listed = [value] if isinstance(value, str) else value
    if listed is None:
        return ()
    if not isinstance(listed, list) or not all(isinstance(name, str) for name in listed):
        config.refuse(key, "a list of module names, or a regular expression")
    return tuple(listed)


def _indices(config: ConfigFile, key: str) -> tuple[int, ...]:
    value = config.values.get(key)
    listed = [value] if isinstance(value, int) else value
    if listed is None:
        return ()
    if not isinstance(listed, list) or not all(type(index) is int and index >= 0 for index in listed):
        config.refuse(key, "a layer index or a list of layer indices")
    return tuple(listed)
