"""Phi-3 mini and medium, and what shares their architecture (Phi-4): one projection for queries, keys and values."""

from __future__ import annotations

from inference_svc.layers.forward import Forward, Value
from inference_svc.layers.rotary import RotaryTable
from inference_svc.models.architecture import Architecture, LinearModule
from inference_svc.models.blocks import RMSNorm, attention_shape
from inference_svc.models.checkpoint import Checkpoint
from inference_svc.models.llama import TWO_NORMS
from inference_svc.models.settings import MAX_CONTEXT, Settings
from inference_svc.models.windows import Windows, gguf_window, in_every_layer


class Phi3Layer:
    """A Llama layer with fused projections."""

    def __init__(self, layer: int, checkpoint: Checkpoint, rotary: RotaryTable) -> None:
        config = checkpoint.config
        prefix = f"model.layers.{layer}"
        self.layer = layer
        self.rotary = rotary
        self.shape = attention_shape(layer, checkpoint)
        self.activation = config.activation
        self.qkv_sizes = (config.query_size, config.key_size, config.key_size)
        self.mlp_sizes = (config.intermediate_size, config.intermediate_size)
        self.qkv_proj = checkpoint.linear(f"{prefix}.self_attn.qkv_proj")
        self.o_proj = checkpoint.linear(f"{prefix}.self_attn.o_proj")
        self.gate_up_proj = checkpoint.linear(f"{prefix}.mlp.gate_up_proj")
        self.down_proj = checkpoint.linear(f"{prefix}.mlp.down_proj")
        self.input_norm = RMSNorm(f"{prefix}.input_layernorm", checkpoint)
        self.post_attention_norm = RMSNorm(f"{prefix}.post_attention_layernorm", checkpoint)

    def __call__(self, run: Forward[Value], x: Value) -> Value:
        """[num_tokens, hidden_size] -> the same."""
        x = run.add(x, self._attention(run, self.input_norm(run, x)))
        return run.add(x, self._mlp(run, self.post_attention_norm(run, x)))

    def _attention(self, run: Forward[Value], x: Value) -> Value:
        q, k, v = run.split(run.linear(x, self.qkv_proj), self.qkv_sizes)
        q = run.rotary(q, self.rotary, self.shape.head_dim)
        k = run.rotary(k, self.rotary, self.shape.head_dim)
        return run.linear(run.attention(q, k, v, self.layer, self.shape), self.o_proj)

    def _mlp(self, run: Forward[Value], x: Value) -> Value:
        gate, up = run.split(run.linear(x, self.gate_up_proj), self.mlp_sizes)
        return run.linear(run.gated(self.activation, gate, up), self.down_proj)


def _gguf_windows(settings: Settings, num_layers: int) -> Windows:
    """Files from before May 2024 lack the window that the 4k models have."""
    is_4k = settings.count("context_length", MAX_CONTEXT) == 4096 and num_layers in (32, 40)
    return (gguf_window(settings, 2047 if is_4k else None),) * num_layers


PHI3 = Architecture(
    name="phi3",
    gguf_name="phi3",
    layer=Phi3Layer,
    linear=(
        LinearModule("self_attn.o_proj", "attn_output", "hidden_size", "query_size"),
        LinearModule("self_attn.qkv_proj", "attn_qkv", "qkv_size", "hidden_size"),
        LinearModule("mlp.gate_up_proj", "ffn_up", "gate_up_size", "hidden_size"),
        LinearModule("mlp.down_proj", "ffn_down", "hidden_size", "intermediate_size"),
    ),
    norms=TWO_NORMS,
    default_eps=1e-5,
    rotary_part=1.0,
    windows=in_every_layer(),
    gguf_windows=_gguf_windows,
)
