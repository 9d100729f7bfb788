"""Judges a document against the weights that the base model really has."""

from __future__ import annotations

import re
from collections.abc import Iterator

from ordering_svc.domain.headers import CheckpointHeader, FileFault
from ordering_svc.domain.ordering import OrderingDocument
from ordering_svc.domain.ordering_json import layer_place
from ordering_svc.domain.problems import Problem, Severity, shown

LOW_BITS_PER_WEIGHT = 5.0
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+", re.ASCII)


def checkpoint_problems(
    document: OrderingDocument, checkpoint: CheckpointHeader | FileFault, *, is_xlora: bool
) -> Iterator[Problem]:
    """Every problem between the layers and the checkpoint's header."""
    if isinstance(checkpoint, FileFault):
        yield Problem("CHECKPOINT_UNREADABLE", "base_model_id", checkpoint.message, file=checkpoint.file)
        return
    for entry, layer in enumerate(document.layers or ()):
        if layer.path not in checkpoint.shapes:
            message = f"The layer `{shown(layer.path)}` has no weight in {checkpoint.file}."
            yield Problem(
                "LAYER_NOT_IN_CHECKPOINT", layer_place(layer.path), message, entry=entry, file=checkpoint.file
            )
            continue
        shape = checkpoint.shapes[layer.path]
        if shape is not None and len(shape) != 2:
            message = f"The weight of layer `{shown(layer.path)}` has the shape {list(shape)}: it is no matrix."
            yield Problem("LAYER_NOT_A_MATRIX", layer_place(layer.path), message, entry=entry, file=checkpoint.file)
    if is_xlora and checkpoint.quantization and checkpoint.bits_per_weight < LOW_BITS_PER_WEIGHT:
        message = (
            f"The base model has {checkpoint.bits_per_weight:.2f} bits a weight ({checkpoint.quantization}):"
            " below 5 bits the classifier of an X-LoRA may see distorted hidden states and choose badly."
        )
        yield Problem("XLORA_BASE_LOW_BITS", "base_model_id", message, Severity.WARNING, file=checkpoint.file)


def base_model_problems(document: OrderingDocument, model_id: str, source: str, file: str = "") -> Iterator[Problem]:
    """Another model than `base_model_id`, where both are hub ids: a folder's name says nothing about its content."""
    own = document.base_model_id or ""
    if own != model_id and _HUB_ID.fullmatch(own) and _HUB_ID.fullmatch(model_id):
        message = f"base_model_id is `{shown(own)}`, but {source} `{shown(model_id)}`."
        yield Problem("BASE_MODEL_ID_MISMATCH", "base_model_id", message, file=file)
