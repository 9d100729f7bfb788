"""Which tensor of a file is which of a checkpoint: names, shapes, and the rows that belong to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from inference_svc.models.architecture import Architecture, LinearModule
from inference_svc.models.config import ModelConfig
from inference_svc.weights.source import SourceFormat, TensorSource


@dataclass(frozen=True, slots=True)
class PlannedTensor:
    """One tensor of the checkpoint, and where it comes from."""

    name: str  # in the checkpoint, as in Hugging Face files
    source: str  # in the file
    source_shape: tuple[int, ...]
    first_row: int = 0
    num_rows: int | None = None  # None: all of them
    permuted_heads: int | None = None  # the rows of each head are interleaved: see `unpermuted_rows`
    add: float = 0.0  # to every number

    @property
    def is_vector(self) -> bool:
        """A bias or a norm: dequantized when it is loaded."""
        return len(self.source_shape) == 1


def planned_tensors(architecture: Architecture, config: ModelConfig, source: TensorSource) -> list[PlannedTensor]:
    """All tensors that a model of this config has."""
    is_gguf = source.format is SourceFormat.GGUF
    places: _Places = _GgufPlaces(config, source) if is_gguf else _HuggingFacePlaces(architecture)
    hidden, vocab = (config.hidden_size,), config.vocab_size
    plan = [places.plain("model.embed_tokens.weight", "token_embd.weight", (vocab, *hidden))]
    norms = [(architecture.final_norm, architecture.final_norm.path, architecture.final_norm.gguf)]
    for layer in range(config.num_layers):
        for path, module in architecture.layer_paths(config):
            shape = (config.size(module.out_features), config.size(module.in_features))
            plan.append(places.linear(layer, path, module, "weight", shape))
            if module.path in config.biased:
                plan.append(places.linear(layer, path, module, "bias", shape[:1]))
        norms += [
            (norm, f"model.layers.{layer}.{norm.path}", f"blk.{layer}.{norm.gguf}") for norm in architecture.norms
        ]
    for norm, path, gguf in norms:
        plan.append(places.norm(f"{path}.weight", f"{gguf}.weight", hidden))
        if norm.has_bias:
            plan.append(places.plain(f"{path}.bias", f"{gguf}.bias", hidden))
    if not config.tied_embeddings:
        plan.append(places.plain("lm_head.weight", "output.weight", (vocab, *hidden)))
    if architecture.head_has_bias:
        plan.append(places.plain("lm_head.bias", "output.bias", (vocab,)))
    return plan


class _Places(Protocol):
    """Where the tensors of a checkpoint lie in files of one format."""

    def plain(self, name: str, gguf: str, shape: tuple[int, ...]) -> PlannedTensor: ...

    def norm(self, name: str, gguf: str, shape: tuple[int, ...]) -> PlannedTensor: ...

    def linear(
        self, layer: int, path: str, module: LinearModule, kind: str, shape: tuple[int, ...]
    ) -> PlannedTensor: ...


class _HuggingFacePlaces:
    """The names are the checkpoint's own."""

    def __init__(self, architecture: Architecture) -> None:
        self.norm_offset = 1.0 if architecture.stores_norms_less_one else 0.0

    def plain(self, name: str, _: str, shape: tuple[int, ...]) -> PlannedTensor:
        return PlannedTensor(name, name, shape)

    def norm(self, name: str, _: str, shape: tuple[int, ...]) -> PlannedTensor:
        return PlannedTensor(name, name, shape, add=self.norm_offset)

    def linear(self, layer: int, path: str, _: LinearModule, kind: str, shape: tuple[int, ...]) -> PlannedTensor:
        name = f"model.layers.{layer}.{path}.{kind}"
        return PlannedTensor(name, name, shape)


class _GgufPlaces:
    """Names of llama.cpp's converter; older files differ in what is one tensor."""

    def __init__(self, config: ModelConfig, source: TensorSource) -> None:
        self.config = config
        self.entries = source.entries

    def plain(self, name: str, gguf: str, shape: tuple[int, ...]) -> PlannedTensor:
        return PlannedTensor(name, gguf, shape)

    norm = plain

    def linear(self, layer: int, path: str, module: LinearModule, kind: str, shape: tuple[int, ...]) -> PlannedTensor:
        name, own = f"model.layers.{layer}.{path}.{kind}", f"blk.{layer}.{module.gguf}.{kind}"
        if module.is_expert:
            return self.expert(name, own, module.expert_of(path), shape)
        heads = shape[0] // self.config.head_dim if module.permuted_in_gguf else None
        fused = f"blk.{layer}.attn_qkv.{kind}"
        queries, keys = self.config.query_size, self.config.key_size
        first = {"attn_q": 0, "attn_k": queries, "attn_v": queries + keys}.get(module.gguf)
        if own in self.entries or fused not in self.entries or first is None:
            return PlannedTensor(name, own, shape, permuted_heads=heads)
        return PlannedTensor(name, fused, (self.config.qkv_size, *shape[1:]), first, shape[0], heads)

    def expert(self, name: str, stacked: str, expert: int, shape: tuple[int, ...]) -> PlannedTensor:
        """Experts are stacked; before April 2024 each had a tensor of its own."""
        own = stacked.replace("_exps.", f".{expert}.")
        if own in self.entries and stacked not in self.entries:
            return PlannedTensor(name, own, shape)
        return PlannedTensor(name, stacked, (self.config.num_experts, *shape), expert * shape[0], shape[0])


def unpermuted_rows(num_heads: int, head_dim: int) -> Tensor:
    """int64 [num_heads * head_dim]: which GGUF row is each row of the Hugging Face layout.

    llama.cpp stores the rows of Q and K of a Llama with the two halves of a head interleaved (`permute` in its
    converter), because it rotates neighbours; Hugging Face rotates halves, and PEFT adapters are trained on that.
    """
    rows = torch.arange(num_heads * head_dim).reshape(num_heads, head_dim // 2, 2)
    return rows.transpose(1, 2).reshape(-1)
