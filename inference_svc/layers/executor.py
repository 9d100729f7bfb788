"""What runs a model's passes: the definition itself, eagerly, or a program recorded from it."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from inference_svc.adapters.bank import AdapterBank
from inference_svc.kv_cache.cache import KVCache
from inference_svc.layers.batch import AdapterRows, ForwardBatch


class Executor(Protocol):
    """Chosen once, at start. What a method has returned, no later call writes to."""

    @property
    def name(self) -> str:
        """`reference`, `native`: what the start-up line says."""
        ...

    @property
    def batch_invariant(self) -> bool:
        """True if no row's arithmetic depends on the other rows."""
        ...

    @property
    def separates_prompts(self) -> bool:
        """True if it computes rows of prompts otherwise than what is generated.

        Both so need passes of their own, and what was computed as the one does not do for the other. Scaling passes are
        computed as what is generated is, whatever their rows are.
        """
        ...

    @property
    def dtype(self) -> torch.dtype:
        """Of hidden states and scalings."""
        ...

    @property
    def cache_dtype(self) -> torch.dtype:
        """Of keys and values in the cache."""
        ...

    def prepare(self, bank: AdapterBank) -> AdapterBank:
        """The bank as this executor reads it, to be kept and used instead; any thread, before the first pass with it.

        A bank that was not prepared runs too, and is prepared beside itself in the first pass with it.
        """
        ...

    def hidden_states(self, batch: ForwardBatch, cache: KVCache) -> Tensor:
        """Hidden states after the final norm [num_tokens, hidden_size]; writes keys and values to the cache."""
        ...

    def logits(self, hidden: Tensor, adapters: tuple[AdapterRows, ...]) -> Tensor:
        """[num_rows, hidden_size] -> float32 [num_rows, vocab_size]; adapters' rows count within these rows."""
        ...
