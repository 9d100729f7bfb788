"""Phi-2 (and Phi-1): attention and feed-forward side by side, on the same norm."""

from __future__ import annotations

from inference_svc.layers.forward import Forward, Value
from inference_svc.layers.rotary import RotaryTable
from inference_svc.models.architecture import Architecture, LinearModule, NormModule
from inference_svc.models.blocks import MLP, Attention, LayerNorm
from inference_svc.models.checkpoint import Checkpoint


class PhiLayer:
    """One norm, two blocks, one residual."""

    def __init__(self, layer: int, checkpoint: Checkpoint, rotary: RotaryTable) -> None:
        self.attention = Attention(layer, checkpoint, rotary, output="dense")
        self.mlp = MLP(layer, checkpoint, "fc1", "fc2")
        self.input_norm = LayerNorm(f"model.layers.{layer}.input_layernorm", checkpoint)

    def __call__(self, run: Forward[Value], x: Value) -> Value:
        """[num_tokens, hidden_size] -> the same."""
        normed = self.input_norm(run, x)
        return run.add(run.add(self.attention(run, normed), self.mlp(run, normed)), x)


PHI = Architecture(
    name="phi",
    gguf_name="phi2",
    layer=PhiLayer,
    linear=(
        LinearModule("self_attn.q_proj", "attn_q", "query_size", "hidden_size", bias=True),
        LinearModule("self_attn.k_proj", "attn_k", "key_size", "hidden_size", bias=True),
        LinearModule("self_attn.v_proj", "attn_v", "key_size", "hidden_size", bias=True),
        LinearModule("self_attn.dense", "attn_output", "hidden_size", "query_size", bias=True),
        LinearModule("mlp.fc1", "ffn_up", "intermediate_size", "hidden_size", bias=True),
        LinearModule("mlp.fc2", "ffn_down", "hidden_size", "intermediate_size", bias=True),
    ),
    norms=(NormModule("input_layernorm", "attn_norm", has_bias=True),),
    final_norm=NormModule("model.final_layernorm", "output_norm", has_bias=True),
    head_has_bias=True,
    eps_key="layer_norm_eps",
    gguf_eps_key="attention.layer_norm_epsilon",
    default_eps=1e-5,
    activation="gelu_tanh",
    rotary_part=0.5,
)
