"""What every architecture's definition offers."""

from __future__ import annotations

from typing import Protocol

from inference_svc.layers.forward import Forward, Value
from inference_svc.models.config import ModelConfig


class ModelDefinition(Protocol):
    """One architecture: token ids to hidden states, hidden states to logits."""

    @property
    def config(self) -> ModelConfig:
        """The numbers that define it."""
        ...

    def hidden_states(self, run: Forward[Value]) -> Value:
        """Hidden states after the final norm, [num_tokens, hidden_size]."""
        ...

    def logits(self, run: Forward[Value], hidden: Value) -> Value:
        """[num_rows, hidden_size] -> [num_rows, vocab_size]."""
        ...
