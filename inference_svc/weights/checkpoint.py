"""A model's weights under the names of Hugging Face checkpoints, whatever file they come from."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from inference_svc.weights.errors import MalformedFile, UnsupportedFile
from inference_svc.weights.gguf import GgufFile
from inference_svc.weights.quantization import QuantizedTensor, is_supported

MAX_LAYERS = 4096
MAX_WIDTH = 1 << 20


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The numbers that define a Llama-like model."""

    architecture: str
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rope_dim: int
    rope_theta: float
    rms_norm_eps: float
    context_length: int
    vocab_size: int
    tied_embeddings: bool


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """Config and weights; matrices stay packed, norms are float32."""

    config: ModelConfig
    tensors: Mapping[str, QuantizedTensor | Tensor]
    rope_factors: Tensor | None  # float32 [rope_dim / 2], divisors of the rotary frequencies (Llama 3)

    def packed(self, name: str) -> QuantizedTensor:
        """A matrix."""
        tensor = self.tensors[name]
        assert isinstance(tensor, QuantizedTensor), name
        return tensor

    def dense(self, name: str) -> Tensor:
        """A vector."""
        tensor = self.tensors[name]
        assert isinstance(tensor, Tensor), name
        return tensor

    def to(self, device: torch.device) -> Checkpoint:
        """The same on another device."""
        return Checkpoint(self.config, {n: t.to(device) for n, t in self.tensors.items()}, self.rope_factors)

    @property
    def nbytes(self) -> int:
        """Bytes of the weights in memory."""
        return sum(t.nbytes for t in self.tensors.values())


# GGUF name -> Hugging Face name, inside a layer.
_LAYER_TENSORS = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}


def llama_config(gguf: GgufFile) -> ModelConfig:
    """The config that a GGUF file of the Llama architecture states.

    Raises:
        UnsupportedFile: another architecture.
        MalformedFile: a key is missing, of the wrong type, or nonsensical.
    """
    architecture = gguf.metadata.get("general.architecture")
    if architecture != "llama":
        raise UnsupportedFile(
            str(gguf.path), f"architecture {reprlib.repr(architecture)} is not supported: only 'llama' is"
        )
    hidden = _count(gguf, "llama.embedding_length", MAX_WIDTH)
    num_heads = _count(gguf, "llama.attention.head_count", MAX_WIDTH)
    num_kv_heads = _count(gguf, "llama.attention.head_count_kv", num_heads, default=num_heads)
    if num_heads % num_kv_heads or (hidden % num_heads and "llama.attention.key_length" not in gguf.metadata):
        raise MalformedFile(
            str(gguf.path),
            f"{num_heads} heads do not go with {num_kv_heads} key and value heads and {hidden} hidden features",
        )
    head_dim = _count(gguf, "llama.attention.key_length", MAX_WIDTH, default=hidden // num_heads)
    rope_dim = _count(gguf, "llama.rope.dimension_count", head_dim, default=head_dim)
    if rope_dim != head_dim or head_dim % 2:
        raise UnsupportedFile(str(gguf.path), f"rotary dimension {rope_dim} of head dimension {head_dim}")
    if (scaling := gguf.metadata.get("llama.rope.scaling.type", "none")) != "none":
        raise UnsupportedFile(str(gguf.path), f"rope scaling {reprlib.repr(scaling)} is not supported yet")
    # Without a type llama.cpp takes these for linear scaling; 0 and 1 mean none.
    for key in ("llama.rope.scaling.factor", "llama.rope.scale_linear"):
        if "llama.rope.scaling.type" not in gguf.metadata and (factor := gguf.metadata.get(key, 1.0)) not in (0, 1):
            raise UnsupportedFile(str(gguf.path), f"rope scaling by {key} {reprlib.repr(factor)} is not supported yet")
    embedding = gguf.entries.get("token_embd.weight")
    if embedding is None:
        raise MalformedFile(str(gguf.path), "tensor 'token_embd.weight' is missing")
    return ModelConfig(
        architecture="llama",
        hidden_size=hidden,
        intermediate_size=_count(gguf, "llama.feed_forward_length", MAX_WIDTH),
        num_layers=_count(gguf, "llama.block_count", MAX_LAYERS),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        rope_dim=rope_dim,
        rope_theta=_number(gguf, "llama.rope.freq_base", default=10000.0),
        rms_norm_eps=_number(gguf, "llama.attention.layer_norm_rms_epsilon"),
        context_length=_count(gguf, "llama.context_length", 1 << 24),
        vocab_size=embedding.shape[0],
        tied_embeddings="output.weight" not in gguf.entries,
    )


def load_llama(gguf: GgufFile) -> Checkpoint:
    """Read all weights of a GGUF file of the Llama architecture.

    Raises:
        UnsupportedFile, MalformedFile: see llama_config; also tensors that are missing, unknown or of another shape.
    """
    config = llama_config(gguf)
    shapes = _expected_shapes(config)
    problems = [f"tensor {name!r} is missing" for name in shapes if name not in gguf.entries]
    problems += [
        f"tensor {name!r} has the shape {gguf.entries[name].shape}, the config asks for {shape}"
        for name, shape in shapes.items()
        if name in gguf.entries and gguf.entries[name].shape != shape
    ]
    # An unknown tensor (a bias, an expert) would change the result: never ignore one.
    known = {*shapes, "rope_freqs.weight"}
    problems += [f"tensor {name!r} is not part of a Llama model" for name in gguf.entries if name not in known]
    if "rope_freqs.weight" in gguf.entries and (shape := gguf.entries["rope_freqs.weight"].shape) != (
        config.rope_dim // 2,
    ):
        problems.append(
            f"tensor 'rope_freqs.weight' has the shape {shape}, the config asks for {(config.rope_dim // 2,)}"
        )
    if problems:
        more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise MalformedFile(str(gguf.path), "; ".join(problems[:5]) + more)
    for entry in gguf.entries.values():
        if not is_supported(entry.quantization):
            raise UnsupportedFile(
                str(gguf.path), f"tensor {entry.name!r} is of type {entry.quantization.name}, which is not supported"
            )
    tensors: dict[str, QuantizedTensor | Tensor] = {}
    for name, shape in shapes.items():
        tensor = gguf.tensor(name)
        if ".attn_q." in name or ".attn_k." in name:
            heads = config.num_heads if ".attn_q." in name else config.num_kv_heads
            tensor = tensor.take_rows(unpermuted_rows(heads, config.head_dim))
        tensors[_checkpoint_name(name)] = tensor.dequantize()[0] if len(shape) == 1 else tensor
    factors = gguf.tensor("rope_freqs.weight").dequantize()[0] if "rope_freqs.weight" in gguf.entries else None
    if factors is not None and not bool(((factors > 0) & factors.isfinite()).all()):
        raise MalformedFile(str(gguf.path), "tensor 'rope_freqs.weight' has divisors that are not positive numbers")
    return Checkpoint(config, tensors, factors)


def unpermuted_rows(num_heads: int, head_dim: int) -> Tensor:
    """int64 [num_heads * head_dim]: which GGUF row is each row of the Hugging Face layout.

    llama.cpp stores the rows of Q and K with the two halves of a head interleaved (`permute` in its converter), because
    it rotates neighbours; Hugging Face rotates halves, and PEFT adapters are trained on that.
    """
    rows = torch.arange(num_heads * head_dim).reshape(num_heads, head_dim // 2, 2)
    return rows.transpose(1, 2).reshape(-1)


def _expected_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    hidden, inner = config.hidden_size, config.intermediate_size
    queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    layer: dict[str, tuple[int, ...]] = {
        "attn_norm": (hidden,),
        "ffn_norm": (hidden,),
        "attn_q": (queries, hidden),
        "attn_k": (keys, hidden),
        "attn_v": (keys, hidden),
        "attn_output": (hidden, queries),
        "ffn_gate": (inner, hidden),
        "ffn_up": (inner, hidden),
        "ffn_down": (hidden, inner),
    }
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (config.vocab_size, hidden),
        "output_norm.weight": (hidden,),
    }
    if not config.tied_embeddings:
        shapes["output.weight"] = (config.vocab_size, hidden)
    for index in range(config.num_layers):
        shapes.update({f"blk.{index}.{name}.weight": shape for name, shape in layer.items()})
    return shapes


def _checkpoint_name(name: str) -> str:
    fixed = {
        "token_embd.weight": "model.embed_tokens.weight",
        "output_norm.weight": "model.norm.weight",
        "output.weight": "lm_head.weight",
    }
    if name in fixed:
        return fixed[name]
    _, layer, module, _ = name.split(".")
    return f"model.layers.{layer}.{_LAYER_TENSORS[module]}.weight"


def _count(gguf: GgufFile, key: str, limit: int, default: int | None = None) -> int:
    value = gguf.metadata.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= limit:
        raise MalformedFile(
            str(gguf.path), f"metadata key {key!r} is {reprlib.repr(value)}, not a whole number from 1 to {limit}"
        )
    return value


def _number(gguf: GgufFile, key: str, default: float | None = None) -> float:
    value = gguf.metadata.get(key, default)
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value < float("inf"):
        raise MalformedFile(str(gguf.path), f"metadata key {key!r} is {reprlib.repr(value)}, not a positive number")
    return float(value)
