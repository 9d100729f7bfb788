"""Every code that a problem can have: what it says about the document, and what to do.

Codes are a contract: they are added, never renamed or given another meaning.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Meaning:
    """What a code stands for."""

    summary: str  # what is wrong, in general
    hint: str  # what to do about it


_GENERATE = "Generate the file again with `loramux ordering generate`; do not edit layers by hand."

CODES: Mapping[str, Meaning] = {
    # The file
    "FILE_TOO_LARGE": Meaning("The file is larger than any ordering.", "Check that it is an ordering file."),
    "NOT_UTF8": Meaning("The file is not UTF-8 text.", "Save it as UTF-8 without a byte order mark."),
    "JSON_INVALID": Meaning("The file is not JSON.", "Correct the syntax at the place that the message names."),
    "JSON_TOO_DEEP": Meaning(
        "The file nests its values too deeply.", "An ordering needs three levels: remove the rest."
    ),
    "NOT_AN_OBJECT": Meaning(
        "The file holds JSON, but no object.", "Write an object with order, layers, base_model_id, preload_adapters."
    ),
    "TYPE_WRONG": Meaning("A value has the wrong type.", "Write a value of the type that the message names."),
    "NOT_UNICODE": Meaning("A text holds half of a surrogate pair.", "Write the character itself, or both halves."),
    "KEY_DUPLICATE": Meaning("A key or a layer is there more than once.", "Keep one of them."),
    "UNKNOWN_KEY": Meaning(
        "A key means nothing in an ordering file.", "Correct its spelling, or remove it; it is kept, but never read."
    ),
    "TOO_MANY_ENTRIES": Meaning("A list is longer than its limit.", "Split the ordering into several."),
    # order
    "ORDER_MISSING": Meaning(
        "An X-LoRA ordering has no order.", "Add order: the adapter names in the order in which they were trained."
    ),
    "ORDER_EMPTY": Meaning(
        "The order of an X-LoRA ordering is empty.", "Write the adapter names in the order in which they were trained."
    ),
    "ORDER_DUPLICATE": Meaning("An adapter is in order more than once.", "Keep the name at one place."),
    "NAME_EMPTY": Meaning("An adapter has an empty name.", "Write its name, or remove the entry."),
    "NAME_TOO_LONG": Meaning("An adapter has a name that is too long.", "Choose a shorter name."),
    "NAME_INVALID": Meaning(
        "An adapter has a name that cannot be a folder.",
        "Use printable characters, no `/` at the start and no `.` or `..` between slashes.",
    ),
    "NAME_PREFIX_COLLISION": Meaning(
        "An adapter's name begins the name of another one.",
        "Rename one of them (adapter_01 and adapter_10) if mistral.rs reads this file: it looks for adapter files by a"
        " part of their path.",
    ),
    # layers
    "LAYERS_MISSING": Meaning("There are no layers.", _GENERATE),
    "ROW_TYPE": Meaning("The row of a layer is not a whole number.", _GENERATE),
    "ROWS_NOT_CONTIGUOUS": Meaning("The rows are not 0 to n-1, each once.", _GENERATE),
    "ROWS_NOT_IN_PEFT_ORDER": Meaning(
        "The rows are in another order than PEFT visits the modules in.",
        "Keep it only if the classifier was trained with this very order; otherwise generate the file again.",
    ),
    "LAYER_PATH_EMPTY": Meaning("A layer has an empty path.", "Write the path of a module, or remove the entry."),
    "LAYER_PATH_TOO_LONG": Meaning("A layer has a path that is too long.", "Write the path of a module of the model."),
    "LAYER_PATH_MALFORMED": Meaning(
        "A layer's path has PEFT's prefix, or a dot at its end.",
        "Write the path as the base model has it, for instance model.layers.0.self_attn.q_proj.",
    ),
    "LAYER_NOT_SUPPORTED": Meaning(
        "Adapters cannot sit on this layer while the base is quantized.",
        "Train without this target module and generate the file again, or use a base that is not quantized.",
    ),
    "LAYER_UNKNOWN": Meaning(
        "The model has no such module.", "Correct the path, or check that the ordering is for this model."
    ),
    "LAYER_INDEX_BEYOND_DEPTH": Meaning(
        "The model has fewer decoder layers.", "Check that the ordering is for this model, and generate it again."
    ),
    "XLORA_LM_HEAD": Meaning(
        "An X-LoRA cannot adapt the output head.", "Train without lm_head as a target module, then generate again."
    ),
    # base_model_id
    "BASE_MODEL_ID_MISSING": Meaning(
        "There is no base_model_id.", "Add base_model_id: the model that the adapters were trained on."
    ),
    "BASE_MODEL_ID_EMPTY": Meaning(
        "The base_model_id is empty.", "Write the id of the model that the adapters were trained on."
    ),
    # preload_adapters
    "PRELOAD_INCOMPLETE": Meaning(
        "An entry of preload_adapters lacks a key.", "Write both: name, and adapter_model_id."
    ),
    "PRELOAD_DUPLICATE": Meaning("An adapter is in preload_adapters more than once.", "Keep one of the entries."),
    "PRELOAD_PLACE_EMPTY": Meaning("An adapter to preload has no place.", "Write a folder or a hub id."),
}
