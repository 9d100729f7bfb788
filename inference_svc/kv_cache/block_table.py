"""The blocks of one sequence in one pass, and the keys under which their contents are shared. Pure Python."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from inference_svc.kv_cache.blocks import BlockPool


class BlockTable:
    """Where the keys and values of a sequence lie: block i holds positions i * block_size and following.

    Only whole blocks are shared, and only what follows them is written, so that no shared block ever changes. The key
    of a block is a SHA-256 chain: over the identity of what computes it (model and adapters), then block by block over
    all token ids up to its end. Equal keys so mean equal contents.
    """

    def __init__(self, identity: str | None) -> None:
        """`identity` names what computes the contents; None: they are not shared."""
        self.ids: list[int] = []
        self.identity = identity
        self._variant = ""
        self._keys: list[bytes] = []
        self._num_published = 0
        self._array = np.empty(8, dtype=np.int64)  # the ids so far as kernels read them
        self._num_in_array = 0

    def as_array(self) -> NDArray[np.int64]:
        """The ids, contiguous; a view of what grows in place, so good until the sequence is released."""
        count = len(self.ids)
        if count > self._num_in_array:
            if count > len(self._array):
                self._array = np.concatenate((self._array, np.empty(max(count, len(self._array)), dtype=np.int64)))
            self._array[self._num_in_array : count] = self.ids[self._num_in_array :]
            self._num_in_array = count
        return self._array[:count]

    def begin_anew(self, variant: str) -> None:
        """From here on the contents are computed in another way, which `variant` names; nothing is held."""
        assert not self.ids
        self._variant = variant
        self._keys = []

    def find_shared(self, pool: BlockPool, token_ids: Sequence[int], limit: int) -> list[int]:
        """Blocks of the longest prefix of at most `limit` tokens that has been computed before; holds nothing yet."""
        found: list[int] = []
        if self.identity is None:
            return found
        for index in range(limit // pool.block_size):
            block = pool.find(self._key(index, token_ids, pool.block_size))
            if block is None:
                break
            found.append(block)
        return found

    def start(self, pool: BlockPool, shared: Sequence[int]) -> None:
        """Begin with blocks that were found."""
        assert not self.ids
        pool.hold(shared)
        self.ids = list(shared)
        self._num_published = len(shared)

    def missing(self, pool: BlockPool, num_tokens: int) -> int:
        """How many more blocks it takes to hold so many tokens."""
        return max(0, pool.blocks_for(num_tokens) - len(self.ids))

    def grow(self, pool: BlockPool, num_tokens: int) -> None:
        """Take what is missing to hold so many tokens; the caller has checked that it is free."""
        self.ids += pool.take(self.missing(pool, num_tokens))

    def publish(self, pool: BlockPool, token_ids: Sequence[int], num_computed: int) -> None:
        """Share the blocks that are full: the first `num_computed` positions have been computed."""
        if self.identity is None:
            return
        for index in range(self._num_published, num_computed // pool.block_size):
            pool.publish(self.ids[index], self._key(index, token_ids, pool.block_size))
            self._num_published = index + 1

    def release(self, pool: BlockPool) -> None:
        """Give all blocks back; the last goes first, for it is of no use without those before it."""
        pool.give_back(reversed(self.ids))
        self.ids = []
        self._num_published = 0
        self._num_in_array = 0

    def _key(self, index: int, token_ids: Sequence[int], block_size: int) -> bytes:
        """Key of a block; token ids of full blocks never change, so keys are computed once."""
        assert self.identity is not None
        while len(self._keys) <= index:
            start = len(self._keys) * block_size
            before = self._keys[-1] if self._keys else hashlib.sha256(self._origin()).digest()
            tokens = array("I", token_ids[start : start + block_size])
            assert len(tokens) == block_size
            self._keys.append(hashlib.sha256(before + tokens.tobytes()).digest())
        return self._keys[index]

    def _origin(self) -> bytes:
        return f"{self.identity}{self._variant}".encode()
