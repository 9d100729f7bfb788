"""What one forward pass computes: rows of tokens, where their keys and values lie, which adapters change them."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from inference_svc.adapters.bank import AdapterBank


@dataclass(frozen=True, slots=True)
class AttentionShape:
    """How one layer's attention works; causal and grouped-query."""

    num_heads: int
    num_kv_heads: int  # divides num_heads
    head_dim: int
    scale: float  # of the scores
    window: int | None = None  # a row sees so many positions, its own among them; None: all
    softcap: float | None = None  # scores become softcap * tanh(score / softcap), before the mask


@dataclass(frozen=True, slots=True, eq=False)
class AttentionSegment:
    """Consecutive rows of one sequence."""

    first_row: int
    num_rows: int
    first_position: int
    blocks: Tensor  # int64 [>= blocks for first_position + num_rows], contiguous: the sequence's cache blocks


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class AdapterRows:
    """The rows that a bank changes, and how strongly."""

    bank: AdapterBank
    rows: Tensor  # int64 [num_adapter_rows], ascending
    # [num_adapter_rows, 1, num_experts] where all layers have the same scalings (constant weights), else
    # [num_adapter_rows, num_layers, num_experts], read at the bank's scaling row of the module.
    scalings: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class ForwardBatch:
    """One forward pass; built by the model runner, read by models and layers.

    Token ids, positions, slots and the blocks of segments are views of what the next pass writes over. The adapters of
    a pass are the very tuple of the pass before it where nothing about them has changed, as whenever the same sequences
    decode on without new X-LoRA scalings: what an executor derives from them it may keep with that tuple.
    """

    token_ids: Tensor  # int64 [num_tokens]
    positions: Tensor  # int64 [num_tokens], as rows of the rotary tables: those of long sequences lie further down
    slots: Tensor  # int64 [num_tokens], cache slot that each row's key and value are written to
    segments: tuple[AttentionSegment, ...]
    # Sorted by bank digest: the order in which a row's deltas are added never depends on the rest of the batch.
    adapters: tuple[AdapterRows, ...] = field(default=())
    # Hidden states of some rows go to a classifier, and its softmax is sensitive: executors give up less accuracy here.
    has_scaling_pass: bool = False
    # All rows are of prompts, in their real pass: only where the executor separates these from what is generated.
    is_of_prompts: bool = False
