"""From the files of a model to its checkpoint; what can be refused is refused before anything big is read."""

from __future__ import annotations

from torch import Tensor

from inference_svc.models.architecture import Architecture
from inference_svc.models.architectures import architecture_of
from inference_svc.models.checkpoint import Checkpoint
from inference_svc.models.config import ModelConfig
from inference_svc.models.gguf import gguf_config
from inference_svc.models.hugging_face import hugging_face_config
from inference_svc.models.rope_settings import DIVISORS, LONG_FACTORS, SHORT_FACTORS
from inference_svc.models.tensor_plan import PlannedTensor, planned_tensors, unpermuted_rows
from inference_svc.weights.errors import MalformedFile, UnsupportedFile
from inference_svc.weights.quantization import QuantizedTensor, is_supported
from inference_svc.weights.source import SourceFormat, TensorSource


def read_config(source: TensorSource) -> ModelConfig:
    """What the files say of the model, without its weights.

    Raises:
        UnsupportedFile: an architecture, or something in it, that is not supported.
        MalformedFile: a setting is missing, of the wrong type, or nonsensical.
    """
    architecture = architecture_of(source)
    read = gguf_config if source.format is SourceFormat.GGUF else hugging_face_config
    return read(architecture, source)


def load_checkpoint(source: TensorSource) -> Checkpoint:
    """Read all weights of a model.

    Raises:
        UnsupportedFile, MalformedFile: see read_config; also tensors that are missing, unknown or of another shape.
    """
    config, plan = _checked_plan(source)
    parts: dict[str, list[PlannedTensor]] = {}
    for planned in plan:
        parts.setdefault(planned.source, []).append(planned)
    tensors: dict[str, QuantizedTensor | Tensor] = {}
    for name, planned_parts in parts.items():
        whole = source.tensor(name)
        tensors |= {planned.name: _placed(planned, whole, config.head_dim) for planned in planned_parts}
    return Checkpoint(config, tensors)


def check_tensors(source: TensorSource) -> None:
    """Refuse by headers alone what `load_checkpoint` would refuse.

    Raises:
        UnsupportedFile, MalformedFile: as for load_checkpoint.
    """
    _checked_plan(source)


def _checked_plan(source: TensorSource) -> tuple[ModelConfig, list[PlannedTensor]]:
    config = read_config(source)
    architecture = architecture_of(source)
    plan = planned_tensors(architecture, config, source)
    _check(architecture, source, plan)
    return config, plan


def _check(architecture: Architecture, source: TensorSource, plan: list[PlannedTensor]) -> None:
    """Every tensor is there, of the right shape, and none is left over: an unknown one would change the result."""
    shapes = {planned.source: planned.source_shape for planned in plan}
    problems = [f"tensor {name!r} is missing" for name in shapes if name not in source.entries]
    problems += [
        f"tensor {name!r} has the shape {source.entries[name].shape}, the config asks for {shape}"
        for name, shape in shapes.items()
        if name in source.entries and source.entries[name].shape != shape
    ]
    problems += [
        f"tensor {name!r} is not part of a {architecture.name} model with this config"
        for name in source.entries
        if name not in shapes and not _is_computed(name, source)
    ]
    if problems:
        more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise MalformedFile(str(source.path), "; ".join(problems[:5]) + more)
    for name in shapes:
        quantization = source.entries[name].quantization
        if not is_supported(quantization):
            raise UnsupportedFile(
                str(source.path), f"tensor {name!r} is of type {quantization.name}, which is not supported"
            )


def _is_computed(name: str, source: TensorSource) -> bool:
    """Tensors that are part of the config, or that old checkpoints keep although the config says the same."""
    if source.format is SourceFormat.GGUF:
        return name in (DIVISORS, LONG_FACTORS, SHORT_FACTORS)
    return name.endswith(".rotary_emb.inv_freq")


def _placed(planned: PlannedTensor, read: QuantizedTensor, head_dim: int) -> QuantizedTensor | Tensor:
    if planned.is_vector:
        vector = read.dequantize()[0]
        if planned.num_rows is not None:
            vector = vector[planned.first_row : planned.first_row + planned.num_rows].clone()
        if planned.permuted_heads is not None:
            vector = vector[unpermuted_rows(planned.permuted_heads, head_dim)]
        return vector + planned.add if planned.add else vector
    rows = read if planned.num_rows is None else read.part(planned.first_row, planned.num_rows)
    if planned.permuted_heads is None:
        return rows
    return rows.take_rows(unpermuted_rows(planned.permuted_heads, head_dim))
