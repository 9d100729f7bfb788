"""Rotary position embedding tables (arXiv 2104.09864)."""

from __future__ import annotations

import torch
from torch import Tensor

from inference_svc.weights.checkpoint import ModelConfig


class RotaryTable:
    """cos and sin of every position up to the context length, computed once in float32."""

    def __init__(self, config: ModelConfig, rope_factors: Tensor | None, *, device: torch.device) -> None:
        exponents = torch.arange(0, config.rope_dim, 2, dtype=torch.int64).float() / config.rope_dim
        inverse_frequencies = 1.0 / (config.rope_theta**exponents)  # [rope_dim / 2]
        if rope_factors is not None:
            # GGUF stores Llama 3's frequency scaling as one divisor a frequency (`rope_freqs.weight`).
            inverse_frequencies = inverse_frequencies / rope_factors.cpu()
        angles = torch.outer(torch.arange(config.context_length).float(), inverse_frequencies)
        self._cos = angles.cos().to(device)
        self._sin = angles.sin().to(device)

    def at(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """cos and sin [num_tokens, rope_dim / 2] at positions int64 [num_tokens]."""
        return self._cos.index_select(0, positions).to(dtype), self._sin.index_select(0, positions).to(dtype)
