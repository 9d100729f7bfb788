"""The modules of each architecture that an adapter can sit on, in the order in which PEFT visits them.

The order is that of `named_modules()` of the model that transformers builds (checked in tests on the meta device, with
the versions below): embeddings, then every decoder layer from 0, then `lm_head`. Mixtral's experts are fused in
transformers 5 and so are no modules of their own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

TRANSFORMERS_VERSION = "5.23.0"  # with which the tables were checked; goes into the provenance of what they make
PEFT_VERSION = "0.21.2"

EMBEDDINGS = "model.embed_tokens"
OUTPUT_HEAD = "lm_head"
LAYER_PREFIX = "model.layers."
MAX_LAYERS = 4096

_ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
_GATED = (*_ATTENTION, "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")

LAYER_MODULES: Mapping[str, tuple[str, ...]] = {
    "gemma": _GATED,
    "gemma2": _GATED,
    "llama": _GATED,
    "mistral": _GATED,
    "mixtral": _ATTENTION,
    "phi": (*_ATTENTION[:3], "self_attn.dense", "mlp.fc1", "mlp.fc2"),
    "phi3": ("self_attn.o_proj", "self_attn.qkv_proj", "mlp.gate_up_proj", "mlp.down_proj"),
    "qwen2": _GATED,
    "starcoder2": (*_ATTENTION, "mlp.c_fc", "mlp.c_proj"),
}

# What a pattern can match beside them, but no adapter can sit on: PEFT refuses such a pattern, and so do we.
_BLOCKS = ("self_attn", "mlp", "input_layernorm")
_NORMED = (*_BLOCKS, "mlp.act_fn", "post_attention_layernorm")
OTHER_LAYER_MODULES: Mapping[str, tuple[str, ...]] = {
    "gemma": _NORMED,
    "gemma2": (*_NORMED, "pre_feedforward_layernorm", "post_feedforward_layernorm"),
    "llama": _NORMED,
    "mistral": _NORMED,
    "mixtral": (*_BLOCKS, "mlp.gate", "mlp.experts", "mlp.experts.act_fn", "post_attention_layernorm"),
    "phi": (*_BLOCKS, "mlp.activation_fn", "resid_dropout"),
    "phi3": (*_BLOCKS, "mlp.activation_fn", "post_attention_layernorm", "resid_attn_dropout", "resid_mlp_dropout"),
    "qwen2": _NORMED,
    "starcoder2": (*_BLOCKS, "mlp.act", "post_attention_layernorm"),
}
_AROUND_THE_LAYERS = ("model", "model.layers", "model.rotary_emb")
_FINAL_NORM = ("model.norm",)
_FINAL_NORMS: Mapping[str, tuple[str, ...]] = {"phi": ("model.embed_dropout", "model.final_layernorm")}

# Where adapters may sit on a quantized base, with the reference system's own lists in its own order.
QUANTIZED_LAYERS: Mapping[str, tuple[str, ...]] = {
    "llama": (*_ATTENTION, "mlp.up_proj", "mlp.down_proj", "mlp.gate_proj", OUTPUT_HEAD),
    "phi3": ("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj", OUTPUT_HEAD),
}


@dataclass(frozen=True, slots=True)
class ModelStructure:
    """What an ordering depends on; the architecture is a key of LAYER_MODULES."""

    architecture: str
    num_layers: int

    @property
    def layer_modules(self) -> tuple[str, ...]:
        """The modules of one decoder layer, without its prefix."""
        return LAYER_MODULES[self.architecture]

    def other_paths(self) -> Iterator[str]:
        """Every module that an adapter cannot sit on: containers, norms, activations; in no particular order."""
        yield from (*_AROUND_THE_LAYERS, *_FINAL_NORMS.get(self.architecture, _FINAL_NORM))
        for index in range(self.num_layers):
            yield f"{LAYER_PREFIX}{index}"
            for module in OTHER_LAYER_MODULES[self.architecture]:
                yield f"{LAYER_PREFIX}{index}.{module}"

    def module_paths(self) -> Iterator[str]:
        """Every module that an adapter can sit on, in PEFT's order."""
        yield EMBEDDINGS
        for index in range(self.num_layers):
            for module in self.layer_modules:
                yield f"{LAYER_PREFIX}{index}.{module}"
        yield OUTPUT_HEAD
