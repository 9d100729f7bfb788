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
        "An X-LoRA adapts the output head.", "Nothing for Loramux; train without lm_head if mistral.rs has to run it."
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
    # The checkpoint of the base model
    "CHECKPOINT_UNREADABLE": Meaning(
        "The header of the base model's checkpoint cannot be read.", "Fetch the file again; it may be cut short."
    ),
    "LAYER_NOT_IN_CHECKPOINT": Meaning(
        "A layer has no weight in the checkpoint.", "Check that the ordering is for this model, and generate it again."
    ),
    "LAYER_NOT_A_MATRIX": Meaning(
        "The weight of a layer is no matrix, so no LoRA can sit on it.", "Remove the layer and generate the file again."
    ),
    "BASE_MODEL_ID_MISMATCH": Meaning(
        "The adapters, the X-LoRA or the model given are of another base model.",
        "Write the model that they were trained on; mistral.rs and Loramux load them for that one only.",
    ),
    "XLORA_BASE_LOW_BITS": Meaning(
        "The base of an X-LoRA has less than 5 bits a weight.", "Use a base with 8 bits, for instance Q8_0."
    ),
    # Adapters
    "ADAPTER_NOT_CHECKED": Meaning(
        "An adapter could not be looked at: it is not on this machine, or nobody said where it is.",
        "Give the folder that holds it, or check it where it is.",
    ),
    "ADAPTER_FILE_MISSING": Meaning(
        "A file or folder of an adapter is not there.", "Correct the name or the place, or put the file there."
    ),
    "ADAPTER_FILE_MALFORMED": Meaning(
        "A file of an adapter is not what its name says.", "Save the adapter again, or fetch the file again."
    ),
    "ADAPTER_FILE_OUTSIDE": Meaning(
        "An adapter is outside the folders that may be read.",
        "Move it into one of them, or start the service with --adapter-root.",
    ),
    "ADAPTER_CONFIG_INVALID": Meaning("A value of an adapter's config makes no sense.", "Correct adapter_config.json."),
    "ADAPTER_TYPE_WRONG": Meaning("An adapter is no LoRA.", "Name LoRA adapters only."),
    "ADAPTER_BEYOND_PLAIN_LORA": Meaning(
        "An adapter uses more than plain LoRA.", "Nothing for Loramux where it loads; do not serve it with mistral.rs."
    ),
    "ADAPTER_TARGETS_NOT_A_LIST": Meaning(
        "The target_modules of an adapter are no list.", "Write a list of names if mistral.rs has to read it."
    ),
    "ADAPTER_TARGETS_DIFFER": Meaning(
        "The adapters have different target modules.", "Nothing for Loramux; mistral.rs needs the same in all of them."
    ),
    "ADAPTER_STRAY_FILE": Meaning(
        "The folder of an adapter holds other files.", "Move them away if mistral.rs has to read the folder."
    ),
    "ADAPTER_TENSOR_UNKNOWN": Meaning("An adapter has tensors that are not LoRA.", "Save the adapter with PEFT."),
    "ADAPTER_TENSOR_DTYPE": Meaning(
        "An adapter has tensors that are not floating point.", "Save the adapter in float32, float16 or bfloat16."
    ),
    "ADAPTER_TENSOR_SHAPE": Meaning("An adapter's tensors do not fit each other.", "Save the adapter again."),
    "ADAPTER_TENSOR_UNPAIRED": Meaning("An adapter lacks lora_A or lora_B of a layer.", "Save the adapter again."),
    "ADAPTER_RANK_MISMATCH": Meaning(
        "An adapter's tensors have another rank than its config says.", "Use the config that it was trained with."
    ),
    "ADAPTER_SHAPE_MISMATCH": Meaning(
        "An adapter's tensors do not fit the base model.", "Use the base model that the adapter was trained on."
    ),
    "ADAPTER_LAYER_UNKNOWN": Meaning(
        "An adapter changes layers that the base model lacks.", "Use the base model that the adapter was trained on."
    ),
    "ADAPTER_LAYER_NOT_IN_ORDERING": Meaning(
        "An adapter changes layers that layers does not name.",
        "Generate the file again with the adapter's target modules.",
    ),
    "LAYER_NOT_IN_ANY_ADAPTER": Meaning(
        "A layer has no adapter.", "Generate the file again with the target modules of the adapters."
    ),
    "LAYER_NOT_IN_EVERY_ADAPTER": Meaning(
        "A layer is changed by some adapters only.", "Check that this was meant: the others leave the layer as it is."
    ),
    # The classifier
    "XLORA_CONFIG_INVALID": Meaning("A value of the X-LoRA's config makes no sense.", "Correct the config."),
    "XLORA_ORDER_DIFFERS": Meaning(
        "The X-LoRA was trained with other adapters, or in another order.", "Write order as in the training."
    ),
    "XLORA_HIDDEN_SIZE": Meaning(
        "The X-LoRA is for another hidden size.", "Use the base model that the X-LoRA was trained on."
    ),
    "XLORA_FILES_UNUSED": Meaning(
        "The ordering says LoRA, but at its place is an X-LoRA.", "Set the kind to xlora, or name another place."
    ),
    "CLASSIFIER_LAYERS_LOST": Meaning(
        "PEFT lost layers of the classifier when it saved them.",
        "Take the classifier from the training run; what is left would be filled up with random numbers.",
    ),
    "CLASSIFIER_TENSORS_WRONG": Meaning(
        "The classifier lacks tensors, or has others.", "Use the config and the classifier of one training run."
    ),
    "CLASSIFIER_SHAPE": Meaning(
        "The layers of the classifier do not fit.", "Use the config and the classifier of one training run."
    ),
    "CLASSIFIER_ROWS": Meaning(
        "The classifier is for another number of adapters or layers.",
        "Name all adapters of the training in order, and generate layers with its target modules.",
    ),
    "CLASSIFIER_INDEX_TRAP": Meaning(
        "The numbers or sizes of the classifier's layers trip some readers.",
        "Check enable_relu_and_dropout against the training; Loramux goes by the order of the layers.",
    ),
}
