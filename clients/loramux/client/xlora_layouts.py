"""X-LoRA mixtures between the original layout and PEFT's: names change, tensors are copied byte for byte.

Original: `xlora_config.json`, `xlora_classifier.safetensors` with `inner.{i}.*` and `last.*`, adapters in sub-folders
of their names. PEFT: `adapter_config.json`, `adapter_model.safetensors` with `internal_xlora_classifier.layers.{i}.*`,
where i counts ReLU and dropout modules too, adapters in sub-folders `0`, `1`...
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from loramux.client.errors import invalid_argument
from loramux.client.safetensors_files import TensorFile, read_tensor_file

Layout = Literal["original", "peft"]

CONFIG_NAMES: Mapping[Layout, str] = {"original": "xlora_config.json", "peft": "adapter_config.json"}
CLASSIFIER_NAMES: Mapping[Layout, str] = {
    "original": "xlora_classifier.safetensors",
    "peft": "adapter_model.safetensors",
}
PEFT_PREFIX = "base_model.internal_xlora_classifier.layers."

# Meant the same in both layouts; the values are those of the xlora package and of PEFT for keys that are missing.
_SHARED: Mapping[str, Any] = {
    "hidden_size": None,
    "layerwise_scalings": False,
    "xlora_depth": 1,
    "xlora_size": 2048,
    "xlora_dropout_p": 0.2,
    "enable_softmax": True,
    "enable_softmax_topk": False,
    "softmax_temperature": 1.0,
    "scaling_pass_value": 0.0,
    "global_scaling_weight": 1.0,
    "top_k_lora": None,
    "use_trainable_adapters": False,
}
_OF_ORIGINAL = frozenset({"base_model_id", "adapters", "enable_relu_and_dropout", "use_bias", "device"})
_OF_PEFT = frozenset(
    {
        "base_model_name_or_path",
        "adapters",
        "peft_type",
        "auto_mapping",
        "inference_mode",
        "peft_version",
        "revision",
        "task_type",
    }
)
_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_INNER = re.compile(r"inner\.(\d+)\.(?:weight|bias)")


def layout_of(folder: Path) -> Layout:
    """How the mixture in a folder is written. Raises InvalidArgument if there is none."""
    if (folder / CONFIG_NAMES["original"]).is_file():
        return "original"
    config = folder / CONFIG_NAMES["peft"]
    if config.is_file() and _config(config).get("peft_type") == "XLORA":
        return "peft"
    raise invalid_argument(
        str(folder), f"holds no X-LoRA: neither {CONFIG_NAMES['original']} nor an adapter_config.json of type XLORA"
    )


def convert_xlora(source: Path, target: Path, to: Layout, order: Sequence[str] | None = None) -> tuple[str, ...]:
    """Writes the mixture in `source` to the new folder `target` in another layout; nothing is written if that fails.

    Args:
        source: folder of the mixture.
        target: where to write; must not exist.
        to: the layout to write.
        order: names of the adapters in training order; needed if the original configuration does not list them.

    Returns the names of the adapters. The rows of the classifier stay as they are, so the `layers` of an ordering fit
    both. A mixture without biases gets biases of zero in PEFT's layout, which cannot say that there are none, and for a
    `scaling_pass_value` of null, which PEFT does not read, the number that it stands for.

    Raises InvalidArgument, naming the file and what is wrong with it, if the other layout cannot express the mixture,
    or PEFT has lost layers of its classifier. Raises OSError.
    """
    origin = layout_of(source)
    if origin == to:
        raise invalid_argument(str(source), f"is in the {to} layout already")
    if target.exists():
        raise invalid_argument(str(target), "exists; name a folder that does not")
    config_path = source / CONFIG_NAMES[origin]
    config = _config(config_path)
    _refuse_unknown(config, _SHARED.keys() | (_OF_PEFT if origin == "peft" else _OF_ORIGINAL), config_path)
    names = _names(config, origin, order, config_path)
    folders = [source / (str(index) if origin == "peft" else name) for index, name in enumerate(names)]
    missing = [folder.name for folder in folders if not folder.is_dir()]
    if missing:
        raise invalid_argument(str(source), f"has no sub-folder {missing[0]!r} for an adapter")
    classifier = read_tensor_file(source / CLASSIFIER_NAMES[origin])
    convert = _to_peft if to == "peft" else _to_original
    written, tensors = convert(config, classifier, names, source)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as scratch:
        made = Path(scratch) / target.name
        made.mkdir()
        (made / CONFIG_NAMES[to]).write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")
        tensors.write(made / CLASSIFIER_NAMES[to])
        for index, folder in enumerate(folders):
            shutil.copytree(folder, made / (str(index) if to == "peft" else names[index]))
        made.rename(target)
    return names


def _to_peft(
    config: Mapping[str, Any], classifier: TensorFile, names: Sequence[str], source: Path
) -> tuple[dict[str, Any], TensorFile]:
    path = source / CLASSIFIER_NAMES["original"]
    depth = _depth(config, source / CONFIG_NAMES["original"])
    if depth > 1 and not config.get("enable_relu_and_dropout", True):
        raise invalid_argument(
            str(source / CONFIG_NAMES["original"]),
            "has enable_relu_and_dropout false; PEFT always has ReLU between the layers of a classifier",
        )
    inner = sorted({int(match[1]) for name in classifier.names if (match := _INNER.fullmatch(name))})
    prefixes = [f"inner.{index}" for index in inner] + ["last"]
    renamed = dict(zip(prefixes, _peft_prefixes(config, depth), strict=False))
    has_bias = bool(config.get("use_bias", True))
    _check_names(classifier, prefixes, depth, has_bias, path)
    shared = {key: config.get(key, default) for key, default in _SHARED.items()}
    if "scaling_pass_value" in config and config["scaling_pass_value"] is None:
        shared["scaling_pass_value"] = 1 / len(names)
    written = {
        "peft_type": "XLORA",
        "task_type": "CAUSAL_LM",
        "inference_mode": True,
        "base_model_name_or_path": config.get("base_model_id"),
        "adapters": {str(index): name for index, name in enumerate(names)},
        **shared,
    }
    tensors = classifier.renamed(lambda name: renamed[name.rpartition(".")[0]] + "." + name.rpartition(".")[2])
    if not has_bias:
        for prefix in renamed.values():
            tensors = tensors.with_zeros_like_rows_of(f"{prefix}.weight", f"{prefix}.bias")
    return written, tensors


def _to_original(
    config: Mapping[str, Any], classifier: TensorFile, names: Sequence[str], source: Path
) -> tuple[dict[str, Any], TensorFile]:
    path = source / CLASSIFIER_NAMES["peft"]
    depth = _depth(config, source / CONFIG_NAMES["peft"])
    prefixes = _peft_prefixes(config, depth)
    classifier = _with_lost_layers(classifier, prefixes, len(names), source)
    lost = [prefix for prefix in prefixes if f"{prefix}.weight" not in classifier.names]
    if lost:
        numbers = ", ".join(prefix.rpartition(".")[2] for prefix in lost)
        raise invalid_argument(
            str(path),
            f"lacks layer {numbers} of the classifier: PEFT leaves out layers whose number is also the name of an "
            f"adapter when it saves, and writes them to {lost[0].rpartition('.')[2]}/{path.name}, as "
            f"{PEFT_PREFIX}weight; take that file, or save the tensors of internal_xlora_classifier from the trained "
            "model with safetensors",
        )
    _check_names(classifier, prefixes, depth, True, path)
    # The xlora package numbers ReLU and dropout too.
    renamed = dict(zip(prefixes, [f"inner.{3 * index}" for index in range(depth - 1)] + ["last"], strict=True))
    written = {
        "base_model_id": config.get("base_model_name_or_path") or "",
        "adapters": list(names),
        "enable_relu_and_dropout": True,
        "use_bias": True,
        **{key: config.get(key, default) for key, default in _SHARED.items()},
    }
    return written, classifier.renamed(lambda name: renamed[name.rpartition(".")[0]] + "." + name.rpartition(".")[2])


def _with_lost_layers(classifier: TensorFile, prefixes: Sequence[str], count: int, source: Path) -> TensorFile:
    """The classifier, and those of its layers that PEFT wrote, without their number, to the file of an adapter."""
    for index in range(count):
        prefix, path = f"{PEFT_PREFIX}{index}", source / str(index) / CLASSIFIER_NAMES["peft"]
        parts = {f"{PEFT_PREFIX}{part}": f"{prefix}.{part}" for part in ("weight", "bias")}
        if prefix in prefixes and classifier.names.isdisjoint(parts.values()) and path.is_file():
            classifier = classifier.with_all_of(read_tensor_file(path, only=parts).renamed(parts.__getitem__))
    return classifier


def _peft_prefixes(config: Mapping[str, Any], depth: int) -> list[str]:
    step = 3 if config.get("xlora_dropout_p", _SHARED["xlora_dropout_p"]) > 0 else 2
    return [f"{PEFT_PREFIX}{step * index}" for index in range(depth)]


def _check_names(classifier: TensorFile, prefixes: Sequence[str], depth: int, has_bias: bool, path: Path) -> None:
    expected = {f"{prefix}.weight" for prefix in prefixes}
    expected |= {f"{prefix}.bias" for prefix in prefixes} if has_bias else set()
    odd = sorted(expected ^ set(classifier.names))
    if odd:
        problem = "lacks" if odd[0] in expected else "holds, beside the classifier,"
        raise invalid_argument(str(path), f"{problem} the tensor {odd[0]}")
    if len(prefixes) != depth:
        raise invalid_argument(str(path), f"has {len(prefixes)} layers, but the configuration says xlora_depth {depth}")


def _names(config: Mapping[str, Any], origin: Layout, order: Sequence[str] | None, path: Path) -> tuple[str, ...]:
    """Names of the adapters in training order."""
    listed = config.get("adapters")
    if origin == "peft":
        if not isinstance(listed, dict) or not listed:
            raise invalid_argument(str(path), "has no adapters")
        values = [str(value) for value in listed.values()]
        are_names = len(set(values)) == len(values) and all(map(_PLAIN_NAME.fullmatch, values))
        names = tuple(order) if order else tuple(values if are_names else listed)
        count = len(listed)
    else:
        if order is None and not (isinstance(listed, list) and listed):
            raise invalid_argument(str(path), "does not list its adapters in training order; give the order")
        names = tuple(map(str, order if order is not None else listed or ()))
        count = len(names) if listed is None else len(listed)
    if len(names) != count:
        raise invalid_argument(str(path), f"has {count} adapters, but the order names {len(names)}")
    wrong = next((name for name in names if not _PLAIN_NAME.fullmatch(name) or names.count(name) > 1), None)
    if wrong is not None:
        raise invalid_argument(str(path), f"cannot have the adapter {wrong!r}: names are folders, each there once")
    return names


def _depth(config: Mapping[str, Any], path: Path) -> int:
    depth = config.get("xlora_depth", 1)
    if not isinstance(depth, int) or isinstance(depth, bool) or depth < 1:
        raise invalid_argument(str(path), f"has xlora_depth {depth!r}; want an integer of at least 1")
    dropout = config.get("xlora_dropout_p", 0.2)
    if isinstance(dropout, bool) or not isinstance(dropout, int | float):
        raise invalid_argument(str(path), f"has xlora_dropout_p {dropout!r}; want a number")
    return depth


def _config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_bytes())
    except ValueError as error:
        raise invalid_argument(str(path), f"is not JSON ({error})") from error
    if not isinstance(config, dict):
        raise invalid_argument(str(path), "does not hold a JSON object")
    return config


def _refuse_unknown(config: Mapping[str, Any], known: Iterable[str], path: Path) -> None:
    said = sorted(key for key in config.keys() - set(known) if config[key])
    if said:
        raise invalid_argument(str(path), f"says {said[0]}, which the other layout has no place for")
