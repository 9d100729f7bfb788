"""The Llama architecture: Llama 2 and 3, SmolLM2, TinyLlama."""

from __future__ import annotations

import torch
from torch import Tensor

from inference_svc.kernels.operations import Kernels
from inference_svc.kv_cache.cache import KVCache
from inference_svc.layers.batch import AdapterRows, ForwardBatch
from inference_svc.layers.linear import Linear
from inference_svc.layers.rotary import RotaryTable
from inference_svc.weights.checkpoint import Checkpoint, ModelConfig


class LlamaAttention:
    """Grouped-query attention with rotary positions over the paged cache."""

    def __init__(self, layer: int, config: ModelConfig, checkpoint: Checkpoint, kernels: Kernels) -> None:
        prefix = f"model.layers.{layer}.self_attn"
        self.layer = layer
        self.config = config
        self.kernels = kernels
        self.scale = config.head_dim**-0.5
        self.q_proj = _linear(f"{prefix}.q_proj", checkpoint, kernels)
        self.k_proj = _linear(f"{prefix}.k_proj", checkpoint, kernels)
        self.v_proj = _linear(f"{prefix}.v_proj", checkpoint, kernels)
        self.o_proj = _linear(f"{prefix}.o_proj", checkpoint, kernels)

    def __call__(self, x: Tensor, batch: ForwardBatch, cos: Tensor, sin: Tensor, cache: KVCache) -> Tensor:
        """[num_tokens, hidden_size] -> the same; writes this layer's keys and values."""
        heads = (x.shape[0], -1, self.config.head_dim)
        q = self.kernels.rotary(self.q_proj(x, batch.adapters).view(heads), cos, sin)
        k = self.kernels.rotary(self.k_proj(x, batch.adapters).view(heads), cos, sin)
        v = self.v_proj(x, batch.adapters).view(heads)
        cache.write(self.layer, batch.slots, k, v)
        attended = self.kernels.attention(q, cache, self.layer, batch.segments, self.scale)
        return self.o_proj(attended.flatten(1), batch.adapters)


class LlamaMLP:
    """The gated feed-forward block."""

    def __init__(self, layer: int, checkpoint: Checkpoint, kernels: Kernels) -> None:
        prefix = f"model.layers.{layer}.mlp"
        self.kernels = kernels
        self.gate_proj = _linear(f"{prefix}.gate_proj", checkpoint, kernels)
        self.up_proj = _linear(f"{prefix}.up_proj", checkpoint, kernels)
        self.down_proj = _linear(f"{prefix}.down_proj", checkpoint, kernels)

    def __call__(self, x: Tensor, adapters: tuple[AdapterRows, ...]) -> Tensor:
        """[num_tokens, hidden_size] -> the same."""
        return self.down_proj(
            self.kernels.silu_product(self.gate_proj(x, adapters), self.up_proj(x, adapters)), adapters
        )


class LlamaLayer:
    """Attention and feed-forward, each with its norm and residual."""

    def __init__(self, layer: int, checkpoint: Checkpoint, kernels: Kernels) -> None:
        config = checkpoint.config
        self.kernels = kernels
        self.eps = config.rms_norm_eps
        self.attention = LlamaAttention(layer, config, checkpoint, kernels)
        self.mlp = LlamaMLP(layer, checkpoint, kernels)
        self.input_norm = checkpoint.dense(f"model.layers.{layer}.input_layernorm.weight")
        self.post_attention_norm = checkpoint.dense(f"model.layers.{layer}.post_attention_layernorm.weight")

    def __call__(self, x: Tensor, batch: ForwardBatch, cos: Tensor, sin: Tensor, cache: KVCache) -> Tensor:
        """[num_tokens, hidden_size] -> the same."""
        x = x + self.attention(self.kernels.rms_norm(x, self.input_norm, self.eps), batch, cos, sin, cache)
        return x + self.mlp(self.kernels.rms_norm(x, self.post_attention_norm, self.eps), batch.adapters)


class LlamaModel:
    """Token ids to hidden states, hidden states to logits."""

    def __init__(self, checkpoint: Checkpoint, kernels: Kernels, dtype: torch.dtype) -> None:
        config = checkpoint.config
        self.config = config
        self.dtype = dtype
        self.kernels = kernels
        self.embedding = checkpoint.packed("model.embed_tokens.weight")
        self.layers = [LlamaLayer(layer, checkpoint, kernels) for layer in range(config.num_layers)]
        self.norm = checkpoint.dense("model.norm.weight")
        head = self.embedding if config.tied_embeddings else checkpoint.packed("lm_head.weight")
        self.lm_head = Linear("lm_head", head, kernels)
        self.rotary_table = RotaryTable(config, checkpoint.rope_factors, device=self.norm.device)

    def hidden_states(self, batch: ForwardBatch, cache: KVCache) -> Tensor:
        """Hidden states after the final norm [num_tokens, hidden_size]; writes keys and values to the cache."""
        x = self.embedding.dequantize_rows(batch.token_ids).to(self.dtype)
        cos, sin = self.rotary_table.at(batch.positions, self.dtype)
        for layer in self.layers:
            x = layer(x, batch, cos, sin, cache)
        return self.kernels.rms_norm(x, self.norm, self.config.rms_norm_eps)

    def logits(self, hidden: Tensor, adapters: tuple[AdapterRows, ...]) -> Tensor:
        """[num_rows, hidden_size] -> float32 [num_rows, vocab_size]; adapters' rows count within these rows."""
        return self.lm_head(hidden, adapters).float()


def _linear(path: str, checkpoint: Checkpoint, kernels: Kernels) -> Linear:
    return Linear(path, checkpoint.packed(f"{path}.weight"), kernels)


def linear_shapes(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """(out_features, in_features) of every linear layer that an adapter can change, in PEFT's module order."""
    hidden, inner = config.hidden_size, config.intermediate_size
    queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    modules = {
        "self_attn.q_proj": (queries, hidden),
        "self_attn.k_proj": (keys, hidden),
        "self_attn.v_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, queries),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    shapes = {
        f"model.layers.{layer}.{module}": shape
        for layer in range(config.num_layers)
        for module, shape in modules.items()
    }
    return {**shapes, "lm_head": (config.vocab_size, hidden)}
