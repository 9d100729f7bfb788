"""What is known of a model after its config was read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from ordering_svc.domain.architectures import LAYER_MODULES, MAX_LAYERS, ModelStructure
from ordering_svc.domain.ordering import digest_of
from ordering_svc.domain.problems import shown
from ordering_svc.errors import ArchitectureUnknown, ModelConfigInvalid

MAX_CONFIG_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class Model:
    """The structure of a model, and which config said so."""

    structure: ModelStructure
    config_digest: str  # SHA-256 in hex: of the bytes of `config.json`, or of the canonical JSON of GGUF metadata
    model_id: str  # the id or path that names it; empty for a config that came as text
    hidden_size: int | None = None  # None: the config does not say it


def model_of_config(text: bytes, model_id: str, source: str) -> Model:
    """The model that a `config.json` describes; `source` is what the caller calls it.

    Raises:
        ModelConfigInvalid: it is not JSON, or lacks the model type or the number of layers.
        ArchitectureUnknown: there is no table for its model type.
    """
    config = _parsed(text, source)
    return Model(structure_of(config, source), digest_of(text), model_id, hidden_size_of(config))


def hidden_size_of(config: Mapping[str, object]) -> int | None:
    """The width of the hidden states, if the config says it."""
    size = config.get("hidden_size")
    return size if type(size) is int and size > 0 else None


def structure_of(config: Mapping[str, object], source: str) -> ModelStructure:
    """What an ordering depends on, from the keys `model_type` and `num_hidden_layers`.

    Raises:
        ModelConfigInvalid: a key is missing or has a senseless value.
        ArchitectureUnknown: there is no table for the model type.
    """
    architecture = config.get("model_type")
    if not isinstance(architecture, str) or not architecture:
        raise ModelConfigInvalid("model", f"the config of {source} has no model_type: it names the architecture")
    if architecture not in LAYER_MODULES:
        raise ArchitectureUnknown(
            "model",
            f"{source} has the architecture {shown(architecture)!r}; orderings can be made for"
            f" {', '.join(sorted(LAYER_MODULES))}",
            architecture=shown(architecture),
        )
    num_layers = config.get("num_hidden_layers")
    if type(num_layers) is not int or not 1 <= num_layers <= MAX_LAYERS:
        raise ModelConfigInvalid(
            "model",
            f"the config of {source} has num_hidden_layers = {shown(num_layers)}; expected a whole number from 1 to"
            f" {MAX_LAYERS}",
        )
    return ModelStructure(architecture, num_layers)


def _parsed(text: bytes, source: str) -> Mapping[str, object]:
    try:
        config = json.loads(text.decode("utf-8"))
    except RecursionError:
        raise ModelConfigInvalid("model", f"the config of {source} nests its values too deeply") from None
    except ValueError as error:
        raise ModelConfigInvalid("model", f"the config of {source} is not JSON: {shown(str(error))}") from None
    if not isinstance(config, dict):
        raise ModelConfigInvalid("model", f"the config of {source} is not a JSON object")
    return config
