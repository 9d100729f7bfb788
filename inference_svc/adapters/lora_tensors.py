"""The tensors of a LoRA file by the layer they belong to, and what else such a file may hold.

PEFT names them `base_model.model.{path}.lora_A.weight`. In an adapter that it saved out of an X-LoRA it is
`base_model.lora_model.model.{path}...`, and beside them lie the whole base model and parts of the classifier. The xlora
package, with most versions of PEFT, leaves parts of the classifier in the adapters' files too.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from inference_svc.adapters.adapter_files import tensor_problem
from inference_svc.adapters.base_copies import copy_problem
from inference_svc.adapters.base_model import BaseModelShape, summary
from inference_svc.adapters.peft_config import CONFIG_NAME, PeftLoraConfig
from inference_svc.errors import AdapterMalformed, AdapterUnfit, AdapterUnsupported, InferenceError, LimitReached

CLASSIFIER = "internal_xlora_classifier."

_PREFIX = r"base_model\.(?:lora_model\.)?model\."
_XLORA_PREFIX = "base_model.lora_model.model."
_KEY = re.compile(rf"{_PREFIX}(?P<path>.+)\.lora_(?P<half>[AB])(\.default)?\.weight")
_MAGNITUDE_KEY = re.compile(rf"{_PREFIX}(?P<path>.+)\.lora_magnitude_vector(\.default)?(\.weight)?")
_BASE_COPY_KEY = re.compile(
    r"base_model\.model\.(?:(?P<path>.+)\.base_layer|(?P<embedding>model\.embed_tokens))\.weight"
)
_XLORA_BASE_KEY = re.compile(
    rf"{re.escape(_XLORA_PREFIX)}(?!.*\.lora_)(?P<path>.+?)(?:\.base_layer)?\.(?P<part>weight|bias)"
)
# Parts of keys that neither LoRA nor DoRA has, and what they belong to.
_UNSUPPORTED_PARTS: Mapping[str, str] = {
    "lora_embedding_": "an adapted embedding",
    "modules_to_save": "a module saved whole",
    "trainable_tokens": "trained tokens",
    ".lora_B.bias": "a bias",
}
_LAYER_INDEX = re.compile(r"\.(\d+)\.")


@dataclass(slots=True)
class Findings:
    """All problems of one file; the most basic kind decides the error."""

    name: str
    malformed: list[str] = field(default_factory=list)
    unsupported: list[str] = field(default_factory=list)
    unfit: list[str] = field(default_factory=list)
    over_limit: list[str] = field(default_factory=list)

    def raise_if_any(self) -> None:
        """Raise one error that lists them."""
        kinds: tuple[tuple[type[InferenceError], list[str]], ...] = (
            (AdapterMalformed, self.malformed),
            (AdapterUnsupported, self.unsupported),
            (AdapterUnfit, self.unfit),
            (LimitReached, self.over_limit),
        )
        problems = [problem for _, found in kinds for problem in found]
        for error, found in kinds:
            if found:
                raise error(f"{self.name}: {summary(problems)}", file=self.name, problems=str(len(problems)))


@dataclass(slots=True)
class LayerTensors:
    """The tensors of one module as they are in the file."""

    a: Tensor | None = None
    b: Tensor | None = None
    magnitude: Tensor | None = None  # DoRA only
    is_broken: bool = False  # already among the findings


@dataclass(slots=True)
class LoraTensors:
    """What a file holds."""

    layers: dict[str, LayerTensors] = field(default_factory=dict)  # by module path
    classifier: dict[str, Tensor] = field(default_factory=dict)  # of the X-LoRA that it was saved with, by key
    is_out_of_xlora: bool = False  # saved by PEFT as part of an X-LoRA


def find_layers(
    tensors: Mapping[str, Tensor], config: PeftLoraConfig, base: BaseModelShape, findings: Findings
) -> LoraTensors:
    """The layers of a file; what does not belong there, and halves without the other, go into the findings."""
    found = LoraTensors(is_out_of_xlora=any(key.startswith(_XLORA_PREFIX) for key in tensors))
    for key, tensor in sorted(tensors.items()):
        if match := _KEY.fullmatch(key):
            slot, dimensions = match["half"].lower(), 2
        elif match := _MAGNITUDE_KEY.fullmatch(key):
            slot, dimensions = "magnitude", 1
        elif key.removeprefix("base_model.").startswith(CLASSIFIER):
            found.classifier[key] = tensor
            continue
        else:
            _check_other(key, tensor, base, findings)
            continue
        layer = found.layers.setdefault(match["path"], LayerTensors())
        if getattr(layer, slot) is not None:
            findings.malformed.append(f"`{key}` is there twice, under two names for the same")
        elif problem := tensor_problem(key, tensor, dimensions):
            findings.malformed.append(problem)
            layer.is_broken = True
        setattr(layer, slot, tensor)
    for path, layer in found.layers.items():
        _check_complete(path, layer, config, findings)
    if config.ensure_weight_tying and base.has_tied_head and "lm_head" in found.layers:
        # PEFT then adapts the embedding too. Without an adapted head, or where nothing is tied, the key does nothing.
        findings.unsupported.append(
            f"`lm_head` is adapted together with the embedding ({CONFIG_NAME}: `ensure_weight_tying`), which is not "
            "supported; train `lm_head` without it"
        )
    if not found.layers and not findings.malformed:
        findings.malformed.append("it holds no LoRA tensors")
    return found


def check_targets(found: LoraTensors, config: PeftLoraConfig, base: BaseModelShape, findings: Findings) -> None:
    """What was trained must be there, and what is there must have been trained: else file and configuration differ."""
    if config.targets is None:
        if found.is_out_of_xlora:
            findings.malformed.append(
                f"PEFT saved it as part of an X-LoRA, which loses layers, and {CONFIG_NAME} does not say in a way that "
                "can be checked which modules were trained: take the adapter as it was before"
            )
        return
    trained = {path for path in base.linear_shapes if config.targets.contain(path)}
    missing = sorted(trained - found.layers.keys())
    if found.is_out_of_xlora and missing:
        indices = sorted({int(match[1]) for path in missing if (match := _LAYER_INDEX.search(path))})
        findings.malformed.append(
            f"{len(missing)} trained modules have no tensors, those of the decoder layers {_listed(indices)} among "
            "them: when PEFT saves an X-LoRA, it leaves out what has the number of another adapter in its name; take "
            "the adapter as it was before"
        )
    else:
        findings.malformed += [
            f"`{path}` has no tensors, but {CONFIG_NAME} says that it was trained" for path in missing
        ]
    for path in sorted((found.layers.keys() & base.linear_shapes.keys()) - trained):
        findings.malformed.append(f"`{path}` has tensors, but {CONFIG_NAME} does not say that it was trained")


def _check_complete(path: str, layer: LayerTensors, config: PeftLoraConfig, findings: Findings) -> None:
    for half, present in (("A", layer.a), ("B", layer.b)):
        if present is None:
            findings.malformed.append(f"`{path}` lacks lora_{half}")
    if config.use_dora != (layer.magnitude is not None):
        layer.is_broken = True
    if config.use_dora and layer.magnitude is None:
        findings.malformed.append(f"`{path}` lacks lora_magnitude_vector, {CONFIG_NAME} says `use_dora`")
    if not config.use_dora and layer.magnitude is not None:
        findings.malformed.append(f"`{path}` has a lora_magnitude_vector, {CONFIG_NAME} does not say `use_dora`")


def _check_other(key: str, tensor: Tensor, base: BaseModelShape, findings: Findings) -> None:
    """A tensor that belongs to no layer: a copy of a base weight is dropped, everything else is a finding."""
    problem = next((f"is {what}" for part, what in _UNSUPPORTED_PARTS.items() if part in key), None)
    if problem is None and (match := _XLORA_BASE_KEY.fullmatch(key)):
        # The whole base model is there, never trained. Of norms and biases there is nothing here to compare with.
        if match["part"] == "weight" and match["path"] in base.weights:
            problem = copy_problem(match["path"], tensor, base)
    elif problem is None and (match := _BASE_COPY_KEY.fullmatch(key)):
        problem = copy_problem(match["path"] or match["embedding"], tensor, base)
    elif problem is None and key.endswith(".bias"):
        problem = "is a bias"
    elif problem is None and "lora_" not in key and key.endswith(".weight"):
        problem = "is a whole weight, not LoRA"
    elif problem is None:
        findings.malformed.append(f"`{key}` is not a LoRA tensor (base_model.model.PATH.lora_A.weight or lora_B)")
    if problem is not None:
        findings.unsupported.append(f"`{key}` {problem}, which is not supported")


def _listed(indices: Iterable[int]) -> str:
    return summary([str(index) for index in indices], shown=8).replace(";", ",")
