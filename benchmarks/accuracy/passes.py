"""Runs texts through an executor, as a prompt or token by token, and keeps logits and scalings of every position."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from inference_svc.adapters.bank import AdapterBank
from inference_svc.adapters.classifier import Classifier
from inference_svc.engine.engine import BLOCK_SIZE, make_cache
from inference_svc.kv_cache.cache import KVCache
from inference_svc.layers.batch import AdapterRows, AttentionSegment, ForwardBatch
from inference_svc.models.base_model import BaseModel


@dataclass(frozen=True, slots=True, eq=False)
class Adapters:
    """What all texts run with: nothing, one LoRA, or a mixture."""

    name: str
    bank: AdapterBank | None = None
    classifier: Classifier | None = None  # of a mixture


@dataclass(frozen=True, slots=True, eq=False)
class Computed:
    """What came out for consecutive positions of each text."""

    logits: Tensor  # float32 [num_texts, num_positions, vocab_size]
    scalings: Tensor | None  # float32 [num_texts, num_positions, num_layers, num_experts]


class Texts:
    """Texts of one length on their way through a model; each has blocks of its own."""

    def __init__(self, base: BaseModel, adapters: Adapters, tokens: Tensor) -> None:
        """`tokens` are int64 [num_texts, length]."""
        self._base = base
        self._adapters = adapters
        self._tokens = tokens
        self._position = 0
        num_texts, length = tokens.shape
        blocks_each = -(-length // BLOCK_SIZE)
        self._blocks = torch.arange(num_texts * blocks_each).reshape(num_texts, blocks_each)
        # As in the engine, the scaling pass of a mixture has keys and values of its own.
        self._cache, self._scaling_cache = (self._new_cache(num_texts * blocks_each) for _ in range(2))

    @torch.inference_mode()
    def advance(self, count: int, num_results: int, *, is_prompt: bool) -> Computed:
        """Run the next `count` positions of every text in one pass; results of the last `num_results` of them.

        They are of a prompt, or generated after it.
        """
        executor, bank, classifier = self._base.executor, self._adapters.bank, self._adapters.classifier
        num_texts = len(self._tokens)
        rows = torch.arange(num_texts * count)
        scalings: Tensor | None = None
        changes: tuple[AdapterRows, ...] = ()
        if bank is not None:
            factors = torch.ones((len(rows), 1, 1), dtype=executor.dtype)
            if classifier is not None:
                hidden = executor.hidden_states(self._batch(count, (), has_scaling_pass=True), self._scaling_cache)
                scalings = classifier.scalings(hidden.float())
                factors = scalings.to(executor.dtype)
            changes = (AdapterRows(bank, rows, factors),)
        batch = replace(self._batch(count, changes), is_of_prompts=is_prompt and executor.separates_prompts)
        hidden = executor.hidden_states(batch, self._cache)
        self._position += count
        kept = rows.reshape(num_texts, count)[:, count - num_results :].flatten()
        # No adapter here changes the head.
        logits = executor.logits(hidden.index_select(0, kept), ()).reshape(num_texts, num_results, -1)
        if scalings is None:
            return Computed(logits, None)
        return Computed(logits, scalings.index_select(0, kept).reshape(num_texts, num_results, *scalings.shape[1:]))

    def _batch(self, count: int, adapters: tuple[AdapterRows, ...], *, has_scaling_pass: bool = False) -> ForwardBatch:
        num_texts = len(self._tokens)
        positions = torch.arange(self._position, self._position + count)
        slots = self._blocks[:, positions // BLOCK_SIZE] * BLOCK_SIZE + positions % BLOCK_SIZE
        segments = tuple(
            AttentionSegment(text * count, count, self._position, self._blocks[text]) for text in range(num_texts)
        )
        tokens = self._tokens[:, self._position : self._position + count]
        ids = tokens.reshape(-1).contiguous()  # of a single column, reshape is a view with gaps
        return ForwardBatch(ids, positions.repeat(num_texts), slots.flatten(), segments, adapters, has_scaling_pass)

    def _new_cache(self, num_blocks: int) -> KVCache:
        executor = self._base.executor
        return make_cache(
            self._base.config,
            num_blocks * BLOCK_SIZE,
            executor.cache_dtype,
            self._base.device,
            hidden_dtype=executor.dtype,
        )


def as_prompt(base: BaseModel, adapters: Adapters, tokens: Tensor, num_results: int) -> Computed:
    """All positions but the last token's in one pass."""
    return Texts(base, adapters, tokens).advance(tokens.shape[1] - 1, num_results, is_prompt=True)


def token_by_token(base: BaseModel, adapters: Adapters, tokens: Tensor, num_results: int) -> Computed:
    """The positions before the results in one pass, then each in a pass of its own; all texts side by side."""
    texts = Texts(base, adapters, tokens)
    texts.advance(tokens.shape[1] - 1 - num_results, 1, is_prompt=True)
    steps = [texts.advance(1, 1, is_prompt=False) for _ in range(num_results)]
    scalings = [step.scalings for step in steps if step.scalings is not None]
    return Computed(torch.cat([step.logits for step in steps], 1), torch.cat(scalings, 1) if scalings else None)


def one_by_one(base: BaseModel, adapters: Adapters, tokens: Tensor, num_results: int) -> Computed:
    """As `token_by_token`, with every text alone: passes of a single row."""
    alone = [token_by_token(base, adapters, text, num_results) for text in tokens.unsqueeze(1)]
    scalings = [one.scalings for one in alone if one.scalings is not None]
    return Computed(torch.cat([one.logits for one in alone]), torch.cat(scalings) if scalings else None)
