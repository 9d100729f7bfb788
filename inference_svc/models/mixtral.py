"""Mixtral: a Llama whose feed-forward blocks are mixtures of experts."""

from __future__ import annotations

from dataclasses import replace

from inference_svc.layers.forward import Forward, Value
from inference_svc.layers.linear import GatedExpert
from inference_svc.layers.rotary import RotaryTable
from inference_svc.models.architecture import LinearModule
from inference_svc.models.blocks import Attention, RMSNorm
from inference_svc.models.checkpoint import Checkpoint
from inference_svc.models.config import ModelConfig
from inference_svc.models.llama import LLAMA, attention_modules
from inference_svc.models.settings import Settings
from inference_svc.models.windows import in_every_layer

MAX_EXPERTS = 1024


class MixtralLayer:
    """Attention and a mixture of experts, each with its norm and residual."""

    def __init__(self, layer: int, checkpoint: Checkpoint, rotary: RotaryTable) -> None:
        config, prefix = checkpoint.config, f"model.layers.{layer}"
        self.activation = config.activation
        self.experts_per_token = config.experts_per_token
        self.attention = Attention(layer, checkpoint, rotary)
        self.router = checkpoint.linear(f"{prefix}.block_sparse_moe.gate")
        self.experts = tuple(
            GatedExpert(*(checkpoint.linear(f"{prefix}.block_sparse_moe.experts.{n}.{w}") for w in ("w1", "w3", "w2")))
            for n in range(config.num_experts)
        )
        self.input_norm = RMSNorm(f"{prefix}.input_layernorm", checkpoint)
        self.post_attention_norm = RMSNorm(f"{prefix}.post_attention_layernorm", checkpoint)

    def __call__(self, run: Forward[Value], x: Value) -> Value:
        """[num_tokens, hidden_size] -> the same."""
        x = run.add(x, self.attention(run, self.input_norm(run, x)))
        normed = self.post_attention_norm(run, x)
        scores = run.linear(normed, self.router)
        return run.add(x, run.experts(normed, scores, self.experts, self.experts_per_token, self.activation))


def _experts(settings: Settings, config: ModelConfig) -> ModelConfig:
    experts = settings.count("num_local_experts", MAX_EXPERTS, 8)
    per_token = settings.count("num_experts_per_tok", experts, 2)
    return replace(config, num_experts=experts, experts_per_token=per_token)


def _gguf_experts(settings: Settings, config: ModelConfig) -> ModelConfig:
    experts = settings.count("expert_count", MAX_EXPERTS)
    return replace(config, num_experts=experts, experts_per_token=settings.count("expert_used_count", experts))


MIXTRAL = replace(
    LLAMA,
    name="mixtral",
    layer=MixtralLayer,
    linear=(
        *attention_modules(permuted=True),
        LinearModule("block_sparse_moe.gate", "ffn_gate_inp", "num_experts", "hidden_size"),
        LinearModule("block_sparse_moe.experts.{expert}.w1", "ffn_gate_exps", "intermediate_size", "hidden_size"),
        LinearModule("block_sparse_moe.experts.{expert}.w2", "ffn_down_exps", "hidden_size", "intermediate_size"),
        LinearModule("block_sparse_moe.experts.{expert}.w3", "ffn_up_exps", "intermediate_size", "hidden_size"),
    ),
    default_eps=1e-5,
    default_theta=1000000.0,
    windows=in_every_layer(),
    has_experts=True,
    refine=_experts,
    gguf_refine=_gguf_experts,
)
