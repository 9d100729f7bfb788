"""Where the queries of a pass, and the keys they see, lie: written down as the kernels of `attention.py` read it.

Queries of one sequence are put together in tiles. Tiles of few rows, as in decoding, share the context out among many
programs; those of prompts have rows enough to keep a device busy without.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from inference_svc.layers.batch import AttentionSegment

DECODE_ROWS = 16  # of a tile's product: queries times the heads that share keys and values
PROMPT_ROWS = 64
SPLIT = 256  # positions of a context that one program goes through in decoding


@dataclass(frozen=True, slots=True, eq=False)
class AttentionTable:
    """Tiles of one kind; tensors on the device of the pass."""

    tiles: Tensor  # int32 [num_tiles, 4]: first row of the pass, rows, first position, sequence
    blocks: Tensor  # int32 [num_sequences, max_blocks]: cache blocks of each sequence
    block_rows: int  # rows of a tile's product: a power of two
    splits: int  # pieces of the longest context, SPLIT positions each; 0: it is not cut


def tables_of(
    segments: tuple[AttentionSegment, ...], group: int, block_size: int, *, batch_invariant: bool
) -> tuple[AttentionTable, ...]:
    """Segments with few queries in one table, others in another.

    In batch-invariant mode all are treated as prompts are: a sequence may be cut into segments in any way.

    Args:
        segments: of a pass.
        group: heads that share keys and values.
        block_size: of the cache.
        batch_invariant: no query's arithmetic may depend on what else is in the pass.
    """
    few = decode_rows(group) // group
    decoding = [s for s in segments if s.num_rows <= few and not batch_invariant]
    prompts = [s for s in segments if s.num_rows > few or batch_invariant]
    tables = []
    if decoding:
        longest = max(s.first_position + s.num_rows for s in decoding)
        tables.append(_table(decoding, decode_rows(group), group, block_size, -(-longest // SPLIT)))
    if prompts:
        tables.append(_table(prompts, prompt_rows(group), group, block_size, 0))
    return tuple(tables)


def decode_rows(group: int) -> int:
    """Rows of a tile in decoding."""
    return max(DECODE_ROWS, 1 << (group - 1).bit_length())


def prompt_rows(group: int) -> int:
    """Rows of a tile of a prompt."""
    return max(PROMPT_ROWS, 1 << (group - 1).bit_length())


def _table(
    segments: Sequence[AttentionSegment], block_rows: int, group: int, block_size: int, splits: int
) -> AttentionTable:
    step = block_rows // group
    tiles = [
        (s.first_row + first, min(step, s.num_rows - first), s.first_position + first, number)
        for number, s in enumerate(segments)
        for first in range(0, s.num_rows, step)
    ]
    needed = [s.blocks[: -(-(s.first_position + s.num_rows) // block_size)] for s in segments]
    blocks = pad_sequence(needed, batch_first=True).to(torch.int32)
    return AttentionTable(torch.tensor(tiles, dtype=torch.int32, device=blocks.device), blocks, block_rows, splits)
