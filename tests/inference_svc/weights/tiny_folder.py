"""Writes the same small Llama twice: as a GGUF file, and as the folder that Hugging Face would have of it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import gguf
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from inference_svc.tokenization.byte_alphabet import BYTE_OF_CHARACTER
from tests.inference_svc.weights.tiny_llama import Weights, write_tiny_llama_gguf

HIDDEN, HEADS, KV_HEADS, LAYERS, FFN, CONTEXT = 64, 4, 2, 2, 128, 256
TOKENS = [*BYTE_OF_CHARACTER, "Th", *(f"<{number}>" for number in range(31))]


@dataclass(frozen=True)
class TinyModel:
    """Where it lies, in both forms."""

    gguf: Path
    folder: Path  # config.json, model.safetensors, tokenizer.json
    weights: Weights  # what both hold, under the names of Hugging Face


def write_tiny_model(
    place: Path, *, seed: int = 0, quantization: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32
) -> TinyModel:
    """Write both; a byte is a token, and so is `Th`. The folder holds in float32 what the GGUF file dequantizes to."""
    place.mkdir(parents=True, exist_ok=True)
    weights = write_tiny_llama_gguf(
        place / "tiny.gguf",
        hidden=HIDDEN,
        heads=HEADS,
        kv_heads=KV_HEADS,
        layers=LAYERS,
        ffn=FFN,
        vocab=TOKENS,
        context=CONTEXT,
        quantization=quantization,
        seed=seed,
    )
    folder = place / "tiny"
    folder.mkdir()
    save_file(weights, folder / "model.safetensors")
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": len(TOKENS),
        "hidden_size": HIDDEN,
        "intermediate_size": FFN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "max_position_embeddings": CONTEXT,
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
    }
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer = Tokenizer(models.BPE({token: index for index, token in enumerate(TOKENS)}, [("T", "h")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    return TinyModel(place / "tiny.gguf", folder, weights)
