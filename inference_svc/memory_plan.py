"""What the service will take of memory: reckoned before the weights are read, so that what cannot fit is refused."""

from __future__ import annotations

import torch

from inference_svc.config import Config
from inference_svc.engine.engine import BLOCK_SIZE, make_cache, num_blocks
from inference_svc.models.base_model import OpenedModel
from inference_svc.weights.memory import available_memory, check_memory

DEFAULT_ADAPTER_BYTES = 8 << 30


def room_for_adapters(config: Config, opened: OpenedModel) -> int:
    """Bytes that adapters may take: as configured, else 8 GiB, or what the model leaves of memory if that is less.

    Raises:
        NotEnoughMemory: weights, cache and what is configured for adapters do not fit together.
    """
    # One block is multiplied: what torch cannot count to is still an amount.
    block = make_cache(
        opened.config,
        BLOCK_SIZE,
        opened.kernels.cache_dtype,
        torch.device("meta"),
        hidden_dtype=opened.kernels.dtype,
    )
    cache_bytes = num_blocks(config.kv_cache_tokens) * block.nbytes
    needs = opened.memory_needs() | {f"a KV cache of {config.kv_cache_tokens} tokens": cache_bytes}
    if config.max_adapter_bytes is not None:
        needs["adapters"] = config.max_adapter_bytes
    available = available_memory(opened.device)
    advice = [
        "take a smaller --kv-cache-tokens",
        *(["a smaller --max-adapter-bytes"] if config.max_adapter_bytes is not None else []),
        *(["--quantize q4_k"] if opened.can_be_quantized and config.quantize != "q4_k" else []),
        "or a smaller model",
    ]
    check_memory(str(opened.source.path), needs, available, ", ".join(advice))
    if config.max_adapter_bytes is not None:
        return config.max_adapter_bytes
    left = DEFAULT_ADAPTER_BYTES if available is None else available - sum(needs.values())
    return max(1, min(DEFAULT_ADAPTER_BYTES, left))
