"""`adapter_config.json` of a PEFT LoRA or DoRA adapter: what changes the maths is understood or refused by name."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from inference_svc.adapters.base_model import summary
from inference_svc.adapters.config_file import ConfigFile, as_float, is_finite_number, read_config
from inference_svc.adapters.peft_fields import IGNORED, PLAIN_INITS, REFUSED, UNDERSTOOD
from inference_svc.adapters.peft_patterns import ModulePatterns, PatternError, compile_patterns
from inference_svc.adapters.peft_targets import PeftTargets
from inference_svc.errors import AdapterMalformed, AdapterUnsupported

CONFIG_NAME = "adapter_config.json"


@dataclass(frozen=True, slots=True)
class PeftLoraConfig:
    """The fields of a PEFT `LoraConfig` that matter at inference."""

    r: int
    lora_alpha: float
    use_rslora: bool
    use_dora: bool
    rank_pattern: ModulePatterns
    alpha_pattern: ModulePatterns
    base_model_id: str  # empty: not said
    task_type: str
    targets: PeftTargets | None  # None: not said, or by an expression that cannot be checked; the tensors decide
    ensure_weight_tying: bool  # an adapter of the head changes the embedding too, where the two are tied
    content: bytes  # the file as it was read

    def rank_for(self, path: str) -> int:
        """LoRA rank of a module."""
        return int(self.rank_pattern.value_for(self._name_of(path), self.r))

    def scale_for(self, path: str) -> float:
        """What B A x is multiplied by: alpha / r, or alpha / sqrt(r) with rank-stabilised LoRA."""
        rank = self.rank_for(path)
        alpha = self.alpha_pattern.value_for(self._name_of(path), self.lora_alpha)
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)

    def _name_of(self, path: str) -> str:
        return path if self.targets is None else self.targets.name_of(path)


def read_peft_config(folder: Path) -> PeftLoraConfig:
    """Read `adapter_config.json` in an adapter's folder.

    Raises:
        SourceNotFound: there is no such file.
        AdapterMalformed: the file, a key or a value is broken; names file, key and value.
        AdapterUnsupported: it asks for something beyond LoRA and DoRA; names the keys.
    """
    config = read_config(folder / CONFIG_NAME, f"{folder.name}/{CONFIG_NAME}")
    _refuse_unsupported(config)
    return PeftLoraConfig(
        r=config.integer("r", 8, minimum=1),
        lora_alpha=config.number("lora_alpha", 8),
        use_rslora=config.boolean("use_rslora", False),
        use_dora=config.boolean("use_dora", False),
        rank_pattern=_patterns(config, "rank_pattern", whole=True),
        alpha_pattern=_patterns(config, "alpha_pattern", whole=False),
        base_model_id=config.text("base_model_name_or_path", ""),
        task_type=config.text("task_type", ""),
        targets=_targets(config),
        ensure_weight_tying=config.boolean("ensure_weight_tying", False),
        content=config.content,
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
    if not isinstance(init, bool) and init is not None and (not isinstance(init, str) or init not in PLAIN_INITS):
        refuse("init_lora_weights", "it changes the base weights; convert the adapter to plain LoRA when saving it")
    if refused := config.said(REFUSED):
        listed = summary([f"`{key}` ({REFUSED[key]})" for key in refused], shown=len(refused))
        raise AdapterUnsupported(f"{config.name}: not supported: {listed}", file=config.name, key=refused[0])
    config.refuse_unknown(UNDERSTOOD | IGNORED.keys())


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


def _targets(config: ConfigFile) -> PeftTargets | None:
    """What the configuration says of the modules that were trained."""
    modules, exclude = _names(config, "target_modules"), _names(config, "exclude_modules")
    layers, pattern = _indices(config), _names(config, "layers_pattern")
    parameters = _names(config, "target_parameters")
    if isinstance(parameters, str):
        config.refuse("target_parameters", "a list of parameter names")
    if not modules and not parameters:
        return None  # an old file; PEFT has a table of defaults for each architecture
    try:
        return PeftTargets(
            modules if isinstance(modules, str) else frozenset(modules),
            exclude if isinstance(exclude, str) else frozenset(exclude),
            layers if isinstance(layers, int) else frozenset(layers),
            (pattern,) if isinstance(pattern, str) else pattern,
            frozenset(parameters),
        )
    except PatternError:
        return None  # it only says again what the tensors say, so it is no reason to refuse the adapter


def _names(config: ConfigFile, key: str) -> str | tuple[str, ...]:
    value = config.values.get(key)
    if value is None or value == "":
        return ()
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        config.refuse(key, "a list of module names, or a regular expression")
    return tuple(value)


def _indices(config: ConfigFile) -> int | tuple[int, ...]:
    value = config.values.get("layers_to_transform")
    if value is None:
        return ()
    listed = value if isinstance(value, list) else [value]
    indices = tuple(index for index in listed if type(index) is int and index >= 0)
    if len(indices) < len(listed):
        config.refuse("layers_to_transform", "a layer index or a list of layer indices")
    return indices if isinstance(value, list) else indices[0]
