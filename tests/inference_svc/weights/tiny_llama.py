"""Writes a small Llama-like GGUF file with random weights, as llama.cpp's converter would."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import gguf
import gguf.quants
import numpy as np
from numpy.typing import NDArray

Weights = dict[str, NDArray[np.float32]]

_GGUF_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def write_tiny_llama_gguf(
    path: Path,
    *,
    hidden: int = 64,
    heads: int = 4,
    kv_heads: int = 2,
    layers: int = 2,
    ffn: int = 128,
    vocab: int | Sequence[str] = 96,
    context: int = 256,
    quantization: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
    tied: bool = True,
    seed: int = 0,
    original_length: int | None = None,
) -> Weights:
    """Write the file; return what its weights dequantize to, under the names and in the layout of Hugging Face.

    The rows of Q and K are permuted in the file, as they are in real ones. `vocab` is the number of tokens, or the
    tokens of a byte-level BPE vocabulary, which the file then carries: those of two characters are its merges. With an
    `original_length` longer sequences have other rotary factors (LongRoPE).
    """
    random = np.random.default_rng(seed)
    head_dim = hidden // heads
    size = vocab if isinstance(vocab, int) else len(vocab)
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens": (size, hidden)}
    for index in range(layers):
        layer: dict[str, tuple[int, ...]] = {
            "self_attn.q_proj": (hidden, hidden),
            "self_attn.k_proj": (kv_heads * head_dim, hidden),
            "self_attn.v_proj": (kv_heads * head_dim, hidden),
            "self_attn.o_proj": (hidden, hidden),
            "mlp.gate_proj": (ffn, hidden),
            "mlp.up_proj": (ffn, hidden),
            "mlp.down_proj": (hidden, ffn),
            "input_layernorm": (hidden,),
            "post_attention_layernorm": (hidden,),
        }
        shapes |= {f"model.layers.{index}.{name}": shape for name, shape in layer.items()}
    shapes["model.norm"] = (hidden,)
    if not tied:
        shapes["lm_head"] = (size, hidden)

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(ffn)
    writer.add_block_count(layers)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_context_length(context)
    if not isinstance(vocab, int):
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("default")
        writer.add_token_list(list(vocab))
        writer.add_token_types([gguf.TokenType.NORMAL] * size)
        writer.add_token_merges([" ".join(token) for token in vocab if len(token) == 2])
    weights: Weights = {}
    for name, shape in shapes.items():
        is_norm = len(shape) == 1
        dense = random.standard_normal(shape, dtype=np.float32) * np.float32(0.1) + np.float32(is_norm)
        kind = gguf.GGMLQuantizationType.F32 if is_norm else quantization
        packed = gguf.quants.quantize(dense, kind)
        weights[f"{name}.weight"] = np.asarray(gguf.quants.dequantize(packed, kind), np.float32).reshape(shape)
        if name.endswith(("q_proj", "k_proj")):  # rows are packed one by one, so they can be moved when packed
            packed = permuted(packed, heads if name.endswith("q_proj") else kv_heads)
        writer.add_tensor(f"{_gguf_name(name)}.weight", packed, raw_dtype=kind)
    if original_length is not None:
        writer.add_rope_scaling_orig_ctx_len(original_length)
        for kind, last in (("short", 1.5), ("long", 8.0)):
            writer.add_tensor(f"rope_factors_{kind}.weight", np.linspace(1.0, last, head_dim // 2, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return weights


def permuted(rows: NDArray[np.generic], heads: int) -> NDArray[np.generic]:
    """The rows of Q or K in llama.cpp's order: the `permute` of its converter (convert_hf_to_gguf.py)."""
    split = rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:])
    return np.ascontiguousarray(split.swapaxes(1, 2).reshape(rows.shape))


def _gguf_name(name: str) -> str:
    fixed = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    if name in fixed:
        return fixed[name]
    _, _, layer, module = name.split(".", 3)
    return f"blk.{layer}.{_GGUF_NAMES[module]}"
