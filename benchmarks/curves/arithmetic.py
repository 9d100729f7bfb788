"""What a decode step costs by arithmetic alone: bytes that it reads and products that it computes.

A step takes the longer of reading and computing. Two rates turn bytes and products into seconds; both are measured, at
the ends where only one of them counts: reading in a step of one row, computing in a prompt of many rows.
"""

from __future__ import annotations

from dataclasses import dataclass

from inference_svc.models.base_model import BaseModel
from inference_svc.models.config import ModelConfig


@dataclass(frozen=True, slots=True)
class Work:
    """Of one step, or one pass of a step."""

    bytes_read: float
    products: float  # multiply-accumulates

    def __add__(self, other: Work) -> Work:
        return Work(self.bytes_read + other.bytes_read, self.products + other.products)


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """Of one model on one machine."""

    weight_bytes: int
    weights: int  # how many, the head's among them
    kv_bytes_a_token: int
    attention_products_a_token: int  # of one row with each token before it
    adapter_weights_a_rank: int
    adapter_bytes_a_rank: int  # executors keep them in numbers as wide as those of the cache
    bytes_a_second: float
    products_a_second: float

    @classmethod
    def measured(cls, base: BaseModel, step_seconds: float, context: int, prompt: tuple[int, float]) -> Arithmetic:
        """From a step of one row at some context, and the tokens and seconds of a prompt."""
        config = base.config
        shapes = [shape for path, shape in base.shape.linear_shapes.items() if path != "lm_head"]
        layer_weights = sum(rows * columns for rows, columns in shapes)
        a_rank = sum(rows + columns for rows, columns in shapes)
        weights = layer_weights + config.vocab_size * config.hidden_size
        unscaled = cls(
            base.weight_bytes,
            weights,
            _kv_width(config) * base.executor.cache_dtype.itemsize,
            2 * config.num_layers * config.num_heads * config.head_dim,
            a_rank,
            a_rank * base.executor.cache_dtype.itemsize,
            1.0,
            1.0,
        )
        one_row = unscaled.work(1, context)
        tokens, seconds = prompt
        # The head computes the last position only.
        products = tokens * layer_weights + unscaled.attention_products_a_token * tokens**2 / 2
        return cls(
            unscaled.weight_bytes,
            weights,
            unscaled.kv_bytes_a_token,
            unscaled.attention_products_a_token,
            a_rank,
            unscaled.adapter_bytes_a_rank,
            one_row.bytes_read / step_seconds,
            products / seconds,
        )

    def work(self, rows: int, context: int, *, ranks_read: int = 0, ranks_computed: int = 0) -> Work:
        """One pass of so many rows, each that far into its text.

        Args:
            rows: how many streams decode.
            context: tokens before each of them.
            ranks_read: sum of the ranks of all adapters in use.
            ranks_computed: sum over rows of the ranks of the adapters that change them.
        """
        return Work(
            self.weight_bytes + rows * context * self.kv_bytes_a_token + ranks_read * self.adapter_bytes_a_rank,
            rows * (self.weights + context * self.attention_products_a_token)
            + ranks_computed * self.adapter_weights_a_rank,
        )

    def seconds(self, work: Work) -> float:
        """The longer of reading and computing."""
        return max(work.bytes_read / self.bytes_a_second, work.products / self.products_a_second)


def _kv_width(config: ModelConfig) -> int:
    return 2 * config.num_layers * config.num_kv_heads * config.head_dim
