"""StarCoder2: layer norms, biases, and a feed-forward block without a gate."""

from __future__ import annotations

from inference_svc.layers.forward import Forward, Value
from inference_svc.layers.rotary import RotaryTable
from inference_svc.models.architecture import Architecture, LinearModule, NormModule
from inference_svc.models.blocks import MLP, Attention, LayerNorm
from inference_svc.models.checkpoint import Checkpoint
from inference_svc.models.llama import attention_modules
from inference_svc.models.windows import gguf_in_every_layer, in_every_layer


class StarCoder2Layer:
    """Attention and feed-forward, each with its norm and residual."""

    def __init__(self, layer: int, checkpoint: Checkpoint, rotary: RotaryTable) -> None:
        self.attention = Attention(layer, checkpoint, rotary)
        self.mlp = MLP(layer, checkpoint, "c_fc", "c_proj")
        self.input_norm = LayerNorm(f"model.layers.{layer}.input_layernorm", checkpoint)
        self.post_attention_norm = LayerNorm(f"model.layers.{layer}.post_attention_layernorm", checkpoint)

    def __call__(self, run: Forward[Value], x: Value) -> Value:
        """[num_tokens, hidden_size] -> the same."""
        x = run.add(x, self.attention(run, self.input_norm(run, x)))
        return run.add(x, self.mlp(run, self.post_attention_norm(run, x)))


STARCODER2 = Architecture(
    name="starcoder2",
    gguf_name="starcoder2",
    layer=StarCoder2Layer,
    linear=(
        *attention_modules(permuted=False, bias="use_bias", output_bias="use_bias"),
        LinearModule("mlp.c_fc", "ffn_up", "intermediate_size", "hidden_size", "use_bias"),
        LinearModule("mlp.c_proj", "ffn_down", "hidden_size", "intermediate_size", "use_bias"),
    ),
    norms=(
        NormModule("input_layernorm", "attn_norm", has_bias=True),
        NormModule("post_attention_layernorm", "ffn_norm", has_bias=True),
    ),
    final_norm=NormModule("model.norm", "output_norm", has_bias=True),
    eps_key="norm_epsilon",
    gguf_eps_key="attention.layer_norm_epsilon",
    default_eps=1e-5,
    activation="gelu_tanh",
    tied_by_default=True,
    windows=in_every_layer(),
    gguf_windows=gguf_in_every_layer,
)
