"""Llama 2 and 3, SmolLM2, TinyLlama; and what differs from them by a window or a bias alone: Mistral, Qwen2."""

from __future__ import annotations

from dataclasses import replace

from inference_svc.layers.forward import Forward, Value
from inference_svc.layers.rotary import RotaryTable
from inference_svc.models.architecture import Architecture, LinearModule, NormModule
from inference_svc.models.blocks import Attention, GatedMLP, RMSNorm
from inference_svc.models.checkpoint import Checkpoint
from inference_svc.models.windows import from_a_layer_on, gguf_in_every_layer, in_every_layer, no_windows


class LlamaLayer:
    """Attention and feed-forward, each with its norm and residual."""

    def __init__(self, layer: int, checkpoint: Checkpoint, rotary: RotaryTable) -> None:
        self.attention = Attention(layer, checkpoint, rotary)
        self.mlp = GatedMLP(layer, checkpoint)
        self.input_norm = RMSNorm(f"model.layers.{layer}.input_layernorm", checkpoint)
        self.post_attention_norm = RMSNorm(f"model.layers.{layer}.post_attention_layernorm", checkpoint)

    def __call__(self, run: Forward[Value], x: Value) -> Value:
        """[num_tokens, hidden_size] -> the same."""
        x = run.add(x, self.attention(run, self.input_norm(run, x)))
        return run.add(x, self.mlp(run, self.post_attention_norm(run, x)))


def attention_modules(
    *, permuted: bool, bias: bool | str = False, output_bias: bool | str = False
) -> tuple[LinearModule, ...]:
    """The four projections of grouped-query attention."""
    return (
        LinearModule("self_attn.q_proj", "attn_q", "query_size", "hidden_size", bias, permuted),
        LinearModule("self_attn.k_proj", "attn_k", "key_size", "hidden_size", bias, permuted),
        LinearModule("self_attn.v_proj", "attn_v", "key_size", "hidden_size", bias),
        LinearModule("self_attn.o_proj", "attn_output", "hidden_size", "query_size", output_bias),
    )


def gated_mlp_modules(bias: bool | str = False) -> tuple[LinearModule, ...]:
    """The three projections of a gated feed-forward block."""
    return (
        LinearModule("mlp.gate_proj", "ffn_gate", "intermediate_size", "hidden_size", bias),
        LinearModule("mlp.up_proj", "ffn_up", "intermediate_size", "hidden_size", bias),
        LinearModule("mlp.down_proj", "ffn_down", "hidden_size", "intermediate_size", bias),
    )


TWO_NORMS = (NormModule("input_layernorm", "attn_norm"), NormModule("post_attention_layernorm", "ffn_norm"))

LLAMA = Architecture(
    name="llama",
    gguf_name="llama",
    layer=LlamaLayer,
    linear=(
        *attention_modules(permuted=True, bias="attention_bias", output_bias="attention_bias"),
        *gated_mlp_modules("mlp_bias"),
    ),
    norms=TWO_NORMS,
    gguf_windows=gguf_in_every_layer,  # a Mistral: its GGUF files are those of a Llama
)

MISTRAL = replace(
    LLAMA,
    name="mistral",
    gguf_name=None,
    linear=(*attention_modules(permuted=True), *gated_mlp_modules()),
    windows=in_every_layer(default=4096),
)

QWEN2 = replace(
    LLAMA,
    name="qwen2",
    gguf_name="qwen2",
    linear=(*attention_modules(permuted=False, bias=True), *gated_mlp_modules()),
    windows=from_a_layer_on,
    gguf_windows=no_windows,
)
