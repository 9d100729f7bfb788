"""Weights that the real model's file could have been made from: anywhere within the cells of its own packing."""

from __future__ import annotations

from pathlib import Path

import torch
from gguf import GGMLQuantizationType
from torch import Tensor

from inference_svc.models.base_model import shape_of
from inference_svc.models.loading import load_checkpoint
from inference_svc.weights.opening import open_model

LAYERS = (
    "model.embed_tokens",
    *(f"model.layers.{i}.mlp.down_proj" for i in (0, 29)),
    "model.layers.15.self_attn.v_proj",
)


def original_rows(path: Path, most: int) -> dict[str, Tensor]:
    """float32 [rows, columns] of the first rows of a few layers, by module path."""
    weights = shape_of(load_checkpoint(open_model(path)), "").weights
    generator = torch.Generator().manual_seed(0)
    found = {}
    for layer in LAYERS:
        values = weights[layer].part(0, most).dequantize().reshape(-1, 32)
        steps = 15 if weights[layer].quantization is GGMLQuantizationType.Q4_1 else 254
        cells = (values.amax(1) - values.amin(1))[:, None] / steps
        moved = values + (torch.rand(values.shape, generator=generator) - 0.5) * cells
        found[layer] = moved.reshape(-1, weights[layer].shape[1])
    return found
