"""The numbers that define a model, whatever its architecture and whatever file they come from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from inference_svc.layers.rotary import RopeConfig

# Widths that the shapes of weights are made of: fields and properties of ModelConfig.
Size = Literal[
    "hidden_size",
    "intermediate_size",
    "query_size",
    "key_size",
    "qkv_size",
    "gate_up_size",
    "num_experts",
    "vocab_size",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """One model; what an architecture does not have stays at its default."""

    architecture: str  # as in `ARCHITECTURES`: `llama`, `phi3`
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    context_length: int
    tied_embeddings: bool
    norm_eps: float
    rope: RopeConfig
    attention_scale: float  # of the scores
    windows: tuple[int | None, ...]  # [num_layers], positions that a row of a layer sees, its own too; None: all
    activation: str = "silu"  # one of `ACTIVATIONS`
    biased: frozenset[str] = frozenset()  # paths of linear layers with a bias, inside a layer
    embedding_scale: float = 1.0
    attention_softcap: float | None = None
    logit_softcap: float | None = None
    num_experts: int = 0  # 0: no mixture of experts
    experts_per_token: int = 0

    @property
    def query_size(self) -> int:
        """Width of the queries of all heads."""
        return self.num_heads * self.head_dim

    @property
    def key_size(self) -> int:
        """Width of the keys of all heads; that of the values too."""
        return self.num_kv_heads * self.head_dim

    @property
    def qkv_size(self) -> int:
        """Width of queries, keys and values from one fused projection."""
        return self.query_size + 2 * self.key_size

    @property
    def gate_up_size(self) -> int:
        """Width of gate and up from one fused projection."""
        return 2 * self.intermediate_size

    def size(self, name: Size) -> int:
        """One of the widths by name."""
        value: int = getattr(self, name)
        return value
