"""The bookkeeping of cache blocks: who holds them, and what those hold that nobody needs just now. Pure Python."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable


class BlockPool:
    """Hands out fixed-size blocks of token slots, and remembers what lies in them.

    A block has any number of holders. What it contains can be published under a key: whoever finds it by that key may
    hold it too, and must not write to it. A block that nobody holds keeps its published contents until it is taken for
    something else: blank blocks are taken first, then the one that was given back longest ago.
    """

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.num_evictions = 0  # published contents that had to go
        # Taken from the end, so that low block ids are used first.
        self._blank = list(range(num_blocks - 1, -1, -1))
        self._idle: OrderedDict[int, None] = OrderedDict()  # published but not held, longest ago first
        self._holders: dict[int, int] = {}  # block -> how many hold it
        self._block_of: dict[bytes, int] = {}
        self._key_of: dict[int, bytes] = {}

    @property
    def num_free(self) -> int:
        """Blocks that can be taken."""
        return len(self._blank) + len(self._idle)

    @property
    def num_published(self) -> int:
        """Blocks whose contents can be found by a key."""
        return len(self._key_of)

    def blocks_for(self, num_tokens: int) -> int:
        """How many blocks hold this many tokens."""
        return -(-num_tokens // self.block_size)

    def take(self, count: int) -> list[int]:
        """Take blocks to write to; the caller has checked that so many are free."""
        assert count <= self.num_free, f"{count} blocks wanted, {self.num_free} free"
        taken = [self._blank.pop() if self._blank else self._evict() for _ in range(count)]
        self._holders.update(dict.fromkeys(taken, 1))
        return taken

    def find(self, key: bytes) -> int | None:
        """The block with the contents of a key, held or not."""
        return self._block_of.get(key)

    def is_held(self, block: int) -> bool:
        """Somebody holds the block: to hold it too costs no free block."""
        return block in self._holders

    def hold(self, blocks: Iterable[int]) -> None:
        """Hold blocks that were found, beside those who hold them already."""
        for block in blocks:
            if block not in self._holders:
                del self._idle[block]
            self._holders[block] = self._holders.get(block, 0) + 1

    def publish(self, block: int, key: bytes) -> None:
        """Let a held block be found by a key; what was published first stays, and a second copy is not found."""
        assert block in self._holders, f"block {block} is published by nobody"
        if key not in self._block_of and block not in self._key_of:
            self._block_of[key] = block
            self._key_of[block] = key

    def give_back(self, blocks: Iterable[int]) -> None:
        """Hold blocks no longer; those that nobody holds become free, the first of them to be evicted first."""
        for block in blocks:
            if self._holders[block] > 1:
                self._holders[block] -= 1
                continue
            del self._holders[block]
            if block in self._key_of:
                self._idle[block] = None
            else:
                self._blank.append(block)

    def _evict(self) -> int:
        block, _ = self._idle.popitem(last=False)
        del self._block_of[self._key_of.pop(block)]
        self.num_evictions += 1
        return block

    def check_integrity(self) -> None:
        """Every block is blank, idle or held, exactly one of them; keys and blocks belong together one to one."""
        blank, idle, held = set(self._blank), set(self._idle), set(self._holders)
        assert len(blank) == len(self._blank), "a block is free twice"
        assert not blank & idle, f"blocks {sorted(blank & idle)} are blank and idle"
        assert not (blank | idle) & held, f"blocks {sorted((blank | idle) & held)} are free and held"
        assert len(blank) + len(idle) + len(held) == self.num_blocks, (
            f"{len(blank)} blank + {len(idle)} idle + {len(held)} held != {self.num_blocks} blocks"
        )
        assert all(count > 0 for count in self._holders.values()), "a block is held by less than one"
        assert {key: block for block, key in self._key_of.items()} == self._block_of, "keys and blocks disagree"
        assert idle <= self._key_of.keys() <= idle | held, "an idle block has no key, or a blank one has"
