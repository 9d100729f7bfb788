"""Runs whole texts through a loaded model: what the engine does with a prompt, for one alone and with all logits."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from inference_svc.adapters.selection import Mixture
from inference_svc.engine.engine import BLOCK_SIZE, make_cache
from inference_svc.engine.model_runner import ModelRunner, RowRequest
from inference_svc.kv_cache.blocks import BlockPool
from inference_svc.models.base_model import BaseModel
from inference_svc.scheduling.sequence import ScheduledSequence, Sequence


@dataclass(frozen=True, slots=True, eq=False)
class Pass:
    """What a model says of one text."""

    logits: NDArray[np.float32]  # [num_tokens, vocab_size]
    scalings: NDArray[np.float32] | None  # [num_tokens, num_layers, num_experts] with an X-LoRA


class Passes:
    """A model with a cache for one text of at most `max_tokens` tokens, and for its scaling pass."""

    def __init__(self, base: BaseModel, max_tokens: int) -> None:
        blocks = 2 * -(-max_tokens // BLOCK_SIZE)
        cache = make_cache(
            base.config,
            blocks * BLOCK_SIZE,
            base.executor.cache_dtype,
            base.device,
            hidden_dtype=base.executor.dtype,
        )
        self._pool = BlockPool(blocks, BLOCK_SIZE)
        self._runner = ModelRunner(base.executor, cache, base.device)
        self._switch_length = base.config.rope.switch_length

    def run(self, token_ids: Seq[int], mixture: Mixture) -> Pass:
        """One pass over all tokens, of which there is one at least."""
        count = len(token_ids)
        sequence = Sequence(
            "text", list(token_ids), count, count, mixture.xlora is not None, switch_length=self._switch_length
        )
        if sequence.must_switch:
            sequence.switch()
        sequence.blocks.grow(self._pool, count)
        if sequence.needs_scaling_pass:
            sequence.scaling_blocks.grow(self._pool, count)
        scheduled = ScheduledSequence(sequence, count, sequence.num_scaling_rows(count))
        result = self._runner.run([RowRequest(scheduled, mixture, all_logits=True)])[0]
        sequence.blocks.release(self._pool)
        sequence.scaling_blocks.release(self._pool)
        assert result.logits is not None
        scalings = None if result.scalings is None else result.scalings.float().cpu().numpy()
        return Pass(np.asarray(result.logits), scalings)
