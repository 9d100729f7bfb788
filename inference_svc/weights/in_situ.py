"""In-situ quantization: which type each weight of a float model gets, and the packing itself.

The choice is that of llama.cpp's quantizer (`llama_tensor_get_type_impl` in llama-quant.cpp) for its Q8_0 and Q4_K_M:
matrices are packed, norms, biases and the routers of mixtures stay as they are. In Q8_0 everything packed is Q8_0. In
Q4_K the head, or the embedding where it is the head too, is Q6_K; so are half of the values' and down projections, the
first and last layers and every third between; all else is Q4_K. A row whose length is no multiple of 256 takes the
legacy type with the next more bits, as there.
"""

from __future__ import annotations

import re
from enum import Enum

import gguf.quants
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from torch import Tensor

from inference_svc.weights.k_quantizers import K_QUANTIZERS
from inference_svc.weights.source import SourceEntry, TensorSource

FLOAT_TYPES = (GGMLQuantizationType.F32, GGMLQuantizationType.F16, GGMLQuantizationType.BF16)

_LAYER = re.compile(r"(?:^blk|\.layers)\.(\d+)\.")
# Names in GGUF, then in Hugging Face checkpoints of the supported architectures.
EMBEDDINGS = ("token_embd.weight", "model.embed_tokens.weight")
_HEADS = ("output.weight", "lm_head.weight")
_ROUTERS = re.compile(r"\.ffn_gate_inp\.|\.(?:block_sparse_moe|mlp)\.gate\.")
_VALUES = re.compile(r"\.attn_(?:v|qkv)\.|\.(?:v|qkv)_proj\.")
_DOWN = re.compile(r"\.ffn_down|\.(?:down_proj|w2|c_proj|fc2)\.")
_SHORT_ROWS = {
    GGMLQuantizationType.Q4_K: GGMLQuantizationType.Q5_0,
    GGMLQuantizationType.Q6_K: GGMLQuantizationType.Q8_0,
}


class Scheme(Enum):
    """What a float model can be packed into."""

    Q8_0 = "q8_0"
    Q4_K = "q4_k"


def chosen_types(source: TensorSource, scheme: Scheme) -> dict[str, GGMLQuantizationType]:
    """The type of every tensor; its own for those that stay as they are."""
    layers = {name: int(match[1]) for name in source.entries if (match := _LAYER.search(name)) is not None}
    num_layers = max(layers.values(), default=-1) + 1
    is_tied = source.metadata.get("tie_word_embeddings") is True or not any(name in source.entries for name in _HEADS)
    heads = (*_HEADS, *EMBEDDINGS) if is_tied else _HEADS
    types = {}
    for name, entry in source.entries.items():
        if not _is_packed(name, entry):
            types[name] = entry.quantization
        elif scheme is Scheme.Q8_0:
            types[name] = _fitting(GGMLQuantizationType.Q8_0, entry)
        else:
            is_fine = name in heads or (
                (_VALUES.search(name) or _DOWN.search(name)) and _has_more_bits(layers.get(name, 0), num_layers)
            )
            types[name] = _fitting(GGMLQuantizationType.Q6_K if is_fine else GGMLQuantizationType.Q4_K, entry)
    return types


def pack(values: Tensor, quantization: GGMLQuantizationType) -> Tensor:
    """float32 [rows, columns], finite and within what float16 holds -> uint8 [rows, row_bytes]."""
    quantizer = K_QUANTIZERS.get(quantization)
    if quantizer is not None:
        return quantizer(values.reshape(-1, 256)).reshape(len(values), -1)
    return torch.from_numpy(gguf.quants.quantize(values.numpy(), quantization)).view(torch.uint8)


def _is_packed(name: str, entry: SourceEntry) -> bool:
    return (
        entry.quantization in FLOAT_TYPES
        and len(entry.shape) > 1
        and name.endswith(".weight")
        and not _ROUTERS.search(name)
    )


def _has_more_bits(layer: int, num_layers: int) -> bool:
    """`use_more_bits` of llama.cpp."""
    eighth = num_layers // 8
    return layer < eighth or layer >= 7 * num_layers // 8 or (layer - eighth) % 3 == 2


def _fitting(quantization: GGMLQuantizationType, entry: SourceEntry) -> GGMLQuantizationType:
    """The type, or the nearest whose blocks divide the rows."""
    for candidate in (quantization, _SHORT_ROWS.get(quantization, quantization)):
        if entry.shape[-1] % GGML_QUANT_SIZES[candidate][0] == 0:
            return candidate
    return entry.quantization
