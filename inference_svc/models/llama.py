"""The Llama architecture: Llama 2 and 3, SmolLM2, TinyLlama."""

from __future__ import annotations

from inference_svc.layers.batch import AttentionShape
from inference_svc.layers.forward import Forward, Value
from inference_svc.layers.linear import Linear
from inference_svc.layers.rotary import RotaryTable
from inference_svc.weights.checkpoint import Checkpoint, ModelConfig


class LlamaAttention:
    """Grouped-query attention with rotary positions."""

    def __init__(self, layer: int, checkpoint: Checkpoint, rotary_table: RotaryTable) -> None:
        config = checkpoint.config
        prefix = f"model.layers.{layer}.self_attn"
        self.layer = layer
        self.rotary_table = rotary_table
        self.shape = AttentionShape(config.num_heads, config.num_kv_heads, config.head_dim, config.head_dim**-0.5)
        self.q_proj = _linear(f"{prefix}.q_proj", checkpoint)
        self.k_proj = _linear(f"{prefix}.k_proj", checkpoint)
        self.v_proj = _linear(f"{prefix}.v_proj", checkpoint)
        self.o_proj = _linear(f"{prefix}.o_proj", checkpoint)

    def __call__(self, run: Forward[Value], x: Value) -> Value:
        """[num_tokens, hidden_size] -> the same."""
        q = run.rotary(run.linear(x, self.q_proj), self.rotary_table, self.shape.head_dim)
        k = run.rotary(run.linear(x, self.k_proj), self.rotary_table, self.shape.head_dim)
        v = run.linear(x, self.v_proj)
        return run.linear(run.attention(q, k, v, self.layer, self.shape), self.o_proj)


class LlamaMLP:
    """The gated feed-forward block."""

    def __init__(self, layer: int, checkpoint: Checkpoint) -> None:
        prefix = f"model.layers.{layer}.mlp"
        self.gate_proj = _linear(f"{prefix}.gate_proj", checkpoint)
        self.up_proj = _linear(f"{prefix}.up_proj", checkpoint)
        self.down_proj = _linear(f"{prefix}.down_proj", checkpoint)

    def __call__(self, run: Forward[Value], x: Value) -> Value:
        """[num_tokens, hidden_size] -> the same."""
        gate, up = run.linear(x, self.gate_proj), run.linear(x, self.up_proj)
        return run.linear(run.gated("silu", gate, up), self.down_proj)


class LlamaLayer:
    """Attention and feed-forward, each with its norm and residual."""

    def __init__(self, layer: int, checkpoint: Checkpoint, rotary_table: RotaryTable) -> None:
        self.eps = checkpoint.config.rms_norm_eps
        self.attention = LlamaAttention(layer, checkpoint, rotary_table)
        self.mlp = LlamaMLP(layer, checkpoint)
        self.input_norm = checkpoint.dense(f"model.layers.{layer}.input_layernorm.weight")
        self.post_attention_norm = checkpoint.dense(f"model.layers.{layer}.post_attention_layernorm.weight")

    def __call__(self, run: Forward[Value], x: Value) -> Value:
        """[num_tokens, hidden_size] -> the same."""
        x = run.add(x, self.attention(run, run.rms_norm(x, self.input_norm, self.eps)))
        return run.add(x, self.mlp(run, run.rms_norm(x, self.post_attention_norm, self.eps)))


class LlamaModel:
    """Token ids to hidden states, hidden states to logits."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        config = checkpoint.config
        self.config = config
        self.embedding = checkpoint.packed("model.embed_tokens.weight")
        self.norm = checkpoint.dense("model.norm.weight")
        rotary_table = RotaryTable(config, checkpoint.rope_factors, device=self.norm.device)
        self.layers = [LlamaLayer(layer, checkpoint, rotary_table) for layer in range(config.num_layers)]
        head = self.embedding if config.tied_embeddings else checkpoint.packed("lm_head.weight")
        self.lm_head = Linear("lm_head", head)

    def hidden_states(self, run: Forward[Value]) -> Value:
        """Hidden states after the final norm [num_tokens, hidden_size]."""
        x = run.embed(self.embedding)
        for layer in self.layers:
            x = layer(run, x)
        return run.rms_norm(x, self.norm, self.config.rms_norm_eps)

    def logits(self, run: Forward[Value], hidden: Value) -> Value:
        """[num_rows, hidden_size] -> [num_rows, vocab_size]."""
        return run.linear(hidden, self.lm_head)


def _linear(path: str, checkpoint: Checkpoint) -> Linear:
    return Linear(path, checkpoint.packed(f"{path}.weight"))


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
