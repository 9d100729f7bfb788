"""The configuration of an X-LoRA mixture, in the original layout (`xlora_config.json`) and in PEFT's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from inference_svc.adapters.classifier import XLoraConfig
from inference_svc.adapters.config_file import ConfigFile, read_config
from inference_svc.errors import AdapterMalformed, OrderingUnfit

MAX_DEPTH = 64

_UNDERSTOOD = frozenset(XLoraConfig.__dataclass_fields__) | {"adapters"}
_HARMLESS = frozenset({"device", "use_trainable_adapters"})  # of training only
_PEFT_UNDERSTOOD = (_UNDERSTOOD | {"peft_type", "base_model_name_or_path"}) - {
    "base_model_id",
    "use_bias",
    "enable_relu_and_dropout",
}
_PEFT_HARMLESS = _HARMLESS | {"auto_mapping", "inference_mode", "peft_version", "revision", "task_type"}


@dataclass(frozen=True, slots=True)
class XLoraLayout:
    """Names of the files that describe a mixture."""

    config_name: str
    classifier_name: str


ORIGINAL = XLoraLayout("xlora_config.json", "xlora_classifier.safetensors")
PEFT = XLoraLayout("adapter_config.json", "adapter_model.safetensors")


def layout_of(folder: Path) -> XLoraLayout | None:
    """How the mixture in a folder is written; None if there is none.

    Raises:
        AdapterMalformed: it is written in both ways, or `adapter_config.json` cannot be read.
    """
    is_original = (folder / ORIGINAL.config_name).is_file()
    is_peft = (folder / PEFT.config_name).is_file() and read_mixture_file(folder, PEFT).values.get(
        "peft_type"
    ) == "XLORA"
    if is_original and is_peft:
        raise AdapterMalformed(
            f"{folder.name} has both {ORIGINAL.config_name} and a {PEFT.config_name} of an X-LoRA, which may differ: "
            "remove one of them"
        )
    if is_original:
        return ORIGINAL
    return PEFT if is_peft else None


def read_mixture_file(folder: Path, layout: XLoraLayout) -> ConfigFile:
    """The configuration's file.

    Raises:
        SourceNotFound: there is no such file.
        AdapterMalformed: it is broken.
    """
    return read_config(folder / layout.config_name, f"{folder.name}/{layout.config_name}")


def peft_adapter_keys(file: ConfigFile) -> tuple[str, ...]:
    """What PEFT's layout calls its adapters, in training order: adapter i lies in the sub-folder `i`.

    Raises:
        AdapterMalformed: the file does not say.
    """
    adapters = file.values.get("adapters")
    if not isinstance(adapters, dict) or not adapters:
        file.refuse("adapters", "an object with one key for each adapter")
    return tuple(adapters)


def xlora_config_from(file: ConfigFile, layout: XLoraLayout, order: Sequence[str]) -> XLoraConfig:
    """The configuration in a file; missing keys take the defaults of the xlora package and of PEFT, which are the same.

    Raises:
        AdapterMalformed: a key or a value is broken; names file, key and value.
        AdapterUnsupported: a key that nobody here knows.
        OrderingUnfit: the file lists other adapters than `order`, or in another order.
    """
    if layout is PEFT:
        file.refuse_unknown(_PEFT_UNDERSTOOD | _PEFT_HARMLESS)
        _check_peft_adapters(file, peft_adapter_keys(file), order)
        base_model_id = file.text("base_model_name_or_path", "")
    else:
        file.refuse_unknown(_UNDERSTOOD | _HARMLESS)
        _check_adapters(file, order)
        base_model_id = file.text("base_model_id", None)
    top_k = None if file.values.get("top_k_lora") is None else file.integer("top_k_lora", None, minimum=1)
    if top_k is not None and top_k > len(order):
        file.refuse("top_k_lora", f"at most the number of adapters, {len(order)}")
    config = XLoraConfig(
        hidden_size=file.integer("hidden_size", None, minimum=1),
        base_model_id=base_model_id,
        layerwise_scalings=file.boolean("layerwise_scalings", False),
        enable_relu_and_dropout=layout is PEFT or file.boolean("enable_relu_and_dropout", True),
        xlora_depth=file.integer("xlora_depth", 1, minimum=1),
        xlora_size=file.integer("xlora_size", 2048, minimum=1),
        xlora_dropout_p=file.number("xlora_dropout_p", 0.2),
        use_bias=layout is PEFT or file.boolean("use_bias", True),
        enable_softmax=file.boolean("enable_softmax", True),
        enable_softmax_topk=file.boolean("enable_softmax_topk", False),
        softmax_temperature=file.number("softmax_temperature", 1.0),
        scaling_pass_value=_scaling_pass_value(file, len(order)),
        global_scaling_weight=file.number("global_scaling_weight", 1.0),
        top_k_lora=top_k,
    )
    if config.xlora_depth > MAX_DEPTH:
        file.refuse("xlora_depth", f"at most {MAX_DEPTH}")
    if config.softmax_temperature <= 0:
        file.refuse("softmax_temperature", "a number above 0")
    if not 0 <= config.xlora_dropout_p <= 1:
        file.refuse("xlora_dropout_p", "a number from 0 to 1")
    return config


def _scaling_pass_value(file: ConfigFile, num_experts: int) -> float:
    """null stands for equal shares."""
    if "scaling_pass_value" in file.values and file.values["scaling_pass_value"] is None:
        return 1.0 / num_experts
    return file.number("scaling_pass_value", 0.0)


def _check_adapters(file: ConfigFile, order: Sequence[str]) -> None:
    """`adapters` is a list in training order, or a dict whose order other tools do not keep."""
    adapters = file.values.get("adapters")
    if adapters is None:
        return
    if not isinstance(adapters, list | dict) or not all(isinstance(name, str) for name in adapters):
        file.refuse("adapters", "a list of names, or an object by name")
    trained = list(adapters)
    reordered = isinstance(adapters, list) and sorted(trained) == sorted(order) and trained != list(order)
    if len(trained) != len(order) or reordered:
        _refuse_order(file, order, trained)


def _check_peft_adapters(file: ConfigFile, trained: Sequence[str], order: Sequence[str]) -> None:
    """PEFT knows its adapters by number; an ordering may name them, but if it uses their keys, then in their order."""
    reordered = sorted(trained) == sorted(order) and list(trained) != list(order)
    if len(trained) != len(order) or reordered:
        _refuse_order(file, order, trained)


def _refuse_order(file: ConfigFile, order: Sequence[str], trained: Sequence[str]) -> None:
    raise OrderingUnfit(
        f"`order` has {list(order)}, but {file.name} was trained with the adapters {list(trained)}: "
        "`order` must have the training order",
        file=file.name,
    )
