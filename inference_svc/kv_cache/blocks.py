"""The bookkeeping of cache blocks: which are free, which belong to whom. Pure Python."""

from __future__ import annotations

from collections.abc import Iterable


class BlockPool:
    """Hands out fixed-size blocks of token slots. A block belongs to one owner until it is given back."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        # Taken from the end, so that low block ids are used first.
        self._free = list(range(num_blocks - 1, -1, -1))
        self._taken: set[int] = set()

    @property
    def num_free(self) -> int:
        """Blocks that can be taken."""
        return len(self._free)

    def blocks_for(self, num_tokens: int) -> int:
        """How many blocks hold this many tokens."""
        return -(-num_tokens // self.block_size)

    def take(self, count: int) -> list[int]:
        """Take blocks; the caller has checked that so many are free."""
        assert count <= len(self._free), f"{count} blocks wanted, {len(self._free)} free"
        taken = [self._free.pop() for _ in range(count)]
        self._taken.update(taken)
        return taken

    def give_back(self, blocks: Iterable[int]) -> None:
        """Return blocks to the pool; each must have been taken."""
        for block in blocks:
            self._taken.remove(block)
            self._free.append(block)

    def check_integrity(self) -> None:
        """Every block is either free or taken, exactly once."""
        free = set(self._free)
        assert len(free) == len(self._free), "a block is free twice"
        assert not free & self._taken, f"blocks {sorted(free & self._taken)} are free and taken"
        assert len(free) + len(self._taken) == self.num_blocks, (
            f"{len(free)} free + {len(self._taken)} taken != {self.num_blocks} blocks"
        )
