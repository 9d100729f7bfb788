"""The block pool against a plain model of it, whatever is done in whatever order; and the keys of block tables."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import given
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from inference_svc.kv_cache.block_table import BlockTable
from inference_svc.kv_cache.blocks import BlockPool


class PoolMachine(RuleBasedStateMachine):
    """Holders take, find, publish and give back; the model knows the contents of every block."""

    @initialize(num_blocks=st.integers(1, 8))
    def start(self, num_blocks: int) -> None:
        self.pool = BlockPool(num_blocks, 4)
        self.holders: list[list[int]] = []
        self.key_of: dict[int, bytes] = {}
        self.idle: list[int] = []  # published and held by nobody, longest ago first

    def held(self) -> set[int]:
        return {block for holder in self.holders for block in holder}

    def blank(self) -> set[int]:
        return set(range(self.pool.num_blocks)) - self.held() - set(self.idle)

    @rule(data=st.data())
    def take(self, data: st.DataObject) -> None:
        count = data.draw(st.integers(0, self.pool.num_free))
        blank = self.blank()
        taken = self.pool.take(count)
        assert len(set(taken)) == count
        assert not set(taken) & self.held()
        # Blank blocks go first, then contents that nobody has wanted for the longest time.
        evicted = self.idle[: max(0, count - len(blank))]
        assert set(taken) - blank == set(evicted)
        for block in evicted:
            self.idle.remove(block)
            assert self.pool.find(self.key_of.pop(block)) is None
        self.holders.append(taken)

    @precondition(lambda self: self.key_of)
    @rule(data=st.data())
    def find(self, data: st.DataObject) -> None:
        block = data.draw(st.sampled_from(sorted(self.key_of)))
        assert self.pool.find(self.key_of[block]) == block
        assert self.pool.is_held(block) == (block in self.held())
        self.pool.hold([block])
        if block in self.idle:
            self.idle.remove(block)
        self.holders.append([block])

    @precondition(lambda self: self.held())
    @rule(data=st.data(), number=st.integers(0, 9))
    def publish(self, data: st.DataObject, number: int) -> None:
        block = data.draw(st.sampled_from(sorted(self.held())))
        key = bytes([number])
        self.pool.publish(block, key)
        if block not in self.key_of and key not in self.key_of.values():
            self.key_of[block] = key

    @precondition(lambda self: self.holders)
    @rule(data=st.data())
    def give_back(self, data: st.DataObject) -> None:
        holder = self.holders.pop(data.draw(st.integers(0, len(self.holders) - 1)))
        self.pool.give_back(holder)
        still = self.held()
        self.idle += [block for block in holder if block not in still and block in self.key_of]

    @invariant()
    def is_as_the_model_says(self) -> None:
        self.pool.check_integrity()
        assert self.pool.num_free == self.pool.num_blocks - len(self.held())
        assert self.pool.num_published == len(self.key_of)
        assert list(self.pool._idle) == self.idle


TestPool = PoolMachine.TestCase

TOKENS = st.lists(st.integers(0, 1), min_size=0, max_size=9)


@given(st.lists(st.tuples(st.sampled_from(["base", "lora 1"]), TOKENS), min_size=2, max_size=2))
def test_blocks_are_shared_as_far_as_identity_and_all_tokens_before_agree(pair: list[tuple[str, list[int]]]) -> None:
    (identity, tokens), (other_identity, other_tokens) = pair
    pool = BlockPool(8, 2)
    table = BlockTable(identity)
    table.grow(pool, len(tokens))
    table.publish(pool, tokens, len(tokens))
    same = 0
    if identity == other_identity:
        while same < min(len(tokens), len(other_tokens)) and tokens[same] == other_tokens[same]:
            same += 1
    found = BlockTable(other_identity).find_shared(pool, other_tokens, len(other_tokens))
    assert found == table.ids[: same // 2]


def test_a_block_is_found_at_its_own_place_only() -> None:
    pool = BlockPool(8, 2)
    table = BlockTable("base")
    table.grow(pool, 4)
    table.publish(pool, [1, 2, 1, 2], 4)
    assert BlockTable("base").find_shared(pool, [1, 2, 1, 2], 3) == table.ids[:1]
    assert table.ids[0] != table.ids[1]


def test_the_end_of_a_prefix_is_evicted_before_its_beginning() -> None:
    pool = BlockPool(4, 2)
    table = BlockTable("base")
    table.grow(pool, 8)
    ids = list(table.ids)
    table.publish(pool, range(8), 8)
    table.release(pool)
    pool.take(1)
    assert BlockTable("base").find_shared(pool, range(8), 8) == ids[:3]
