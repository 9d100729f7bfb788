"""The parts that decoder layers are made of; an architecture puts them together."""

from __future__ import annotations

from inference_svc.layers.batch import AttentionShape
from inference_svc.layers.forward import Forward, Value
from inference_svc.layers.rotary import RotaryTable
from inference_svc.models.checkpoint import Checkpoint


class RMSNorm:
    """Root-mean-square norm."""

    def __init__(self, path: str, checkpoint: Checkpoint) -> None:
        self.weight = checkpoint.dense(f"{path}.weight")
        self.eps = checkpoint.config.norm_eps

    def __call__(self, run: Forward[Value], x: Value) -> Value:
        """[num_tokens, hidden_size] -> the same."""
        return run.rms_norm(x, self.weight, self.eps)


class LayerNorm:
    """Layer norm with a bias."""

    def __init__(self, path: str, checkpoint: Checkpoint) -> None:
        self.weight = checkpoint.dense(f"{path}.weight")
        self.bias = checkpoint.dense(f"{path}.bias")
        self.eps = checkpoint.config.norm_eps

    def __call__(self, run: Forward[Value], x: Value) -> Value:
        """[num_tokens, hidden_size] -> the same."""
        return run.layer_norm(x, self.weight, self.bias, self.eps)


class Attention:
    """Grouped-query attention with rotary positions."""

    def __init__(self, layer: int, checkpoint: Checkpoint, rotary: RotaryTable, output: str = "o_proj") -> None:
        prefix = f"model.layers.{layer}.self_attn"
        self.layer = layer
        self.rotary = rotary
        self.shape = attention_shape(layer, checkpoint)
        self.q_proj = checkpoint.linear(f"{prefix}.q_proj")
        self.k_proj = checkpoint.linear(f"{prefix}.k_proj")
        self.v_proj = checkpoint.linear(f"{prefix}.v_proj")
        self.output = checkpoint.linear(f"{prefix}.{output}")

    def __call__(self, run: Forward[Value], x: Value) -> Value:
        """[num_tokens, hidden_size] -> the same."""
        # One after the other, so that an executor can take what reads the same rows together.
        q, k, v = run.linear(x, self.q_proj), run.linear(x, self.k_proj), run.linear(x, self.v_proj)
        q, k = (run.rotary(heads, self.rotary, self.shape.head_dim) for heads in (q, k))
        return run.linear(run.attention(q, k, v, self.layer, self.shape), self.output)


class GatedMLP:
    """A feed-forward block with a gate."""

    def __init__(self, layer: int, checkpoint: Checkpoint) -> None:
        prefix = f"model.layers.{layer}.mlp"
        self.activation = checkpoint.config.activation
        self.gate_proj = checkpoint.linear(f"{prefix}.gate_proj")
        self.up_proj = checkpoint.linear(f"{prefix}.up_proj")
        self.down_proj = checkpoint.linear(f"{prefix}.down_proj")

    def __call__(self, run: Forward[Value], x: Value) -> Value:
        """[num_tokens, hidden_size] -> the same."""
        gate, up = run.linear(x, self.gate_proj), run.linear(x, self.up_proj)
        return run.linear(run.gated(self.activation, gate, up), self.down_proj)


class MLP:
    """A feed-forward block without a gate; architectures name its two layers differently."""

    def __init__(self, layer: int, checkpoint: Checkpoint, wide: str, narrow: str) -> None:
        prefix = f"model.layers.{layer}.mlp"
        self.activation = checkpoint.config.activation
        self.wide = checkpoint.linear(f"{prefix}.{wide}")
        self.narrow = checkpoint.linear(f"{prefix}.{narrow}")

    def __call__(self, run: Forward[Value], x: Value) -> Value:
        """[num_tokens, hidden_size] -> the same."""
        return run.linear(run.activate(self.activation, run.linear(x, self.wide)), self.narrow)


def attention_shape(layer: int, checkpoint: Checkpoint) -> AttentionShape:
    """How the attention of a layer works."""
    config = checkpoint.config
    return AttentionShape(
        config.num_heads,
        config.num_kv_heads,
        config.head_dim,
        config.attention_scale,
        config.windows[layer],
        config.attention_softcap,
    )
