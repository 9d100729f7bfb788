"""The models that are measured: copies of the served one for peers that read no GGUF, and a larger random one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from inference_svc.weights.in_situ import pack

# The shape of TinyLlama 1.1B, but for the vocabulary: that of the model whose tokenizer it borrows.
LAYERS, HIDDEN, HEADS, KV_HEADS, INNER, CONTEXT = 22, 2048, 32, 4, 5632, 4096
POOL_ROWS = 2048


def write_dequantized(source: Path, folder: Path) -> None:
    """A Hugging Face folder with the weights that the GGUF file stands for; left alone if it is there."""
    if (folder / "config.json").is_file():
        return
    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    model = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
    # transformers takes a dequantized model for a quantized one and refuses to save it.
    model.hf_quantizer, model.is_quantized = None, False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    field = GGUFReader(source).fields["llama.rope.freq_base"]
    _edit(folder / "config.json", rope_theta=float(field.contents()))


def write_untied(source: Path, folder: Path) -> None:
    """A copy for mistral.rs, which wants a head of its own and merges as strings; left alone if it is there."""
    if (folder / "config.json").is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    for file in source.iterdir():
        if file.suffix != ".safetensors" and file.name != "config.json":
            shutil.copy(file, folder)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    merges = tokenizer["model"]["merges"]
    tokenizer["model"]["merges"] = [merge if isinstance(merge, str) else " ".join(merge) for merge in merges]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False))
    weights = load_file(source / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    shutil.copy(source / "config.json", folder)
    _edit(folder / "config.json", tie_word_embeddings=False)


def write_random_llama(path: Path, tokenizer_of: Path) -> None:
    """A Llama of 1.1 billion random weights, Q4_K with a Q6_K head; left alone if it is there.

    Rows are drawn from a pool of packed ones: packing them all would take minutes, and no contender can tell.
    """
    if path.is_file():
        return
    part = path.with_suffix(".part")
    writer = gguf.GGUFWriter(part, "llama")
    vocabulary = _copy_tokenizer(GGUFReader(tokenizer_of), writer)
    writer.add_block_count(LAYERS)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_context_length(CONTEXT)
    writer.add_vocab_size(vocabulary)
    random = np.random.default_rng(0)
    pools = {
        (columns, kind): _pool(columns, kind)
        for columns, kind in (
            (HIDDEN, GGMLQuantizationType.Q4_K),
            (INNER, GGMLQuantizationType.Q4_K),
            (HIDDEN, GGMLQuantizationType.Q6_K),
        )
    }

    def add(name: str, rows: int, columns: int, kind: GGMLQuantizationType = GGMLQuantizationType.Q4_K) -> None:
        chosen = pools[columns, kind][random.integers(POOL_ROWS, size=rows)]
        writer.add_tensor(name, chosen, raw_dtype=kind)

    keys = HIDDEN // HEADS * KV_HEADS
    matrices = {
        "attn_q": (HIDDEN, HIDDEN),
        "attn_k": (keys, HIDDEN),
        "attn_v": (keys, HIDDEN),
        "attn_output": (HIDDEN, HIDDEN),
        "ffn_gate": (INNER, HIDDEN),
        "ffn_up": (INNER, HIDDEN),
        "ffn_down": (HIDDEN, INNER),
    }
    ones = np.ones(HIDDEN, np.float32)
    add("token_embd.weight", vocabulary, HIDDEN, GGMLQuantizationType.Q6_K)
    writer.add_tensor("output_norm.weight", ones)
    for layer in range(LAYERS):
        for name, (rows, columns) in matrices.items():
            add(f"blk.{layer}.{name}.weight", rows, columns)
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{name}.weight", ones)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    part.rename(path)


def _pool(columns: int, kind: GGMLQuantizationType) -> NDArray[np.uint8]:
    values = torch.randn((POOL_ROWS, columns), generator=torch.Generator().manual_seed(columns)) * 0.02
    packed: NDArray[np.uint8] = pack(values, kind).numpy()
    return packed


def _copy_tokenizer(source: GGUFReader, writer: gguf.GGUFWriter) -> int:
    """Copy the keys of the tokenizer; returns the number of tokens."""
    for name, field in source.fields.items():
        if name.startswith("tokenizer."):
            kind = field.types[0]
            writer.add_key_value(
                name, field.contents(), kind, sub_type=field.types[-1] if kind is GGUFValueType.ARRAY else None
            )
    return len(source.fields["tokenizer.ggml.tokens"].contents())


def _edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes, indent=1))
