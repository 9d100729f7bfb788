"""Gemma and Gemma 2: a scaled embedding, and norms that are stored less one."""

from __future__ import annotations

from dataclasses import replace

from inference_svc.layers.forward import Forward, Value
from inference_svc.layers.rotary import RotaryTable
from inference_svc.models.architecture import Architecture, NormModule
from inference_svc.models.blocks import Attention, GatedMLP, RMSNorm
from inference_svc.models.checkpoint import Checkpoint
from inference_svc.models.config import ModelConfig
from inference_svc.models.llama import TWO_NORMS, LlamaLayer, attention_modules, gated_mlp_modules
from inference_svc.models.settings import Settings
from inference_svc.models.windows import Windows, alternating, gguf_window


class Gemma2Layer:
    """Attention and feed-forward, each between two norms."""

    def __init__(self, layer: int, checkpoint: Checkpoint, rotary: RotaryTable) -> None:
        prefix = f"model.layers.{layer}"
        self.attention = Attention(layer, checkpoint, rotary)
        self.mlp = GatedMLP(layer, checkpoint)
        self.input_norm = RMSNorm(f"{prefix}.input_layernorm", checkpoint)
        self.post_attention_norm = RMSNorm(f"{prefix}.post_attention_layernorm", checkpoint)
        self.pre_feedforward_norm = RMSNorm(f"{prefix}.pre_feedforward_layernorm", checkpoint)
        self.post_feedforward_norm = RMSNorm(f"{prefix}.post_feedforward_layernorm", checkpoint)

    def __call__(self, run: Forward[Value], x: Value) -> Value:
        """[num_tokens, hidden_size] -> the same."""
        attended = self.attention(run, self.input_norm(run, x))
        x = run.add(x, self.post_attention_norm(run, attended))
        fed = self.mlp(run, self.pre_feedforward_norm(run, x))
        return run.add(x, self.post_feedforward_norm(run, fed))


def _gemma2(settings: Settings, config: ModelConfig) -> ModelConfig:
    def softcap(key: str, default: float) -> float | None:
        if settings.has(key) and settings.get(key) is None:
            return None
        return settings.number(key, default)

    return replace(
        config,
        attention_scale=settings.number("query_pre_attn_scalar", 256.0) ** -0.5,
        attention_softcap=softcap("attn_logit_softcapping", 50.0),
        logit_softcap=softcap("final_logit_softcapping", 30.0),
    )


def _gguf_gemma2(settings: Settings, config: ModelConfig) -> ModelConfig:
    """The file does not say how scores are scaled: of the published models, the one of 27B differs from the others."""
    is_27b = config.num_layers == 46
    return replace(
        config,
        attention_scale=(config.hidden_size // config.num_heads if is_27b else config.head_dim) ** -0.5,
        attention_softcap=settings.number("attn_logit_softcapping", 50.0),
        logit_softcap=settings.number("final_logit_softcapping", 30.0),
    )


def _gguf_alternating(settings: Settings, num_layers: int) -> Windows:
    window = gguf_window(settings, 4096)
    pattern = "attention.sliding_window_pattern"
    if settings.get(pattern) not in (None, 2):
        raise settings.unsupported(pattern, "every second layer has a window")
    return tuple(window if layer % 2 == 0 else None for layer in range(num_layers))


GEMMA = Architecture(
    name="gemma",
    gguf_name="gemma",
    layer=LlamaLayer,
    linear=(
        *attention_modules(permuted=False, bias="attention_bias", output_bias="attention_bias"),
        *gated_mlp_modules(),
    ),
    norms=TWO_NORMS,
    activation="gelu_tanh",
    tied_by_default=True,
    stores_norms_less_one=True,
    scales_embedding=True,
)

GEMMA2 = replace(
    GEMMA,
    name="gemma2",
    gguf_name="gemma2",
    layer=Gemma2Layer,
    norms=(
        NormModule("input_layernorm", "attn_norm"),
        NormModule("post_attention_layernorm", "post_attention_norm"),
        NormModule("pre_feedforward_layernorm", "ffn_norm"),
        NormModule("post_feedforward_layernorm", "post_ffw_norm"),
    ),
    activation_key="hidden_activation",
    windows=alternating(default=4096),
    gguf_windows=_gguf_alternating,
    refine=_gemma2,
    gguf_refine=_gguf_gemma2,
)
