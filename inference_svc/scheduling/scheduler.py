"""Continuous batching with chunked prefill: which tokens of which sequences run in the next step. Pure Python."""

from __future__ import annotations

from collections import deque

from inference_svc.kv_cache.blocks import BlockPool
from inference_svc.scheduling.sequence import ScheduledSequence, Sequence


class Scheduler:
    """First come, first served. An admitted sequence has all blocks it can ever need, so none is preempted."""

    def __init__(self, pool: BlockPool, *, max_running: int, max_batch_tokens: int) -> None:
        self.pool = pool
        self.max_running = max_running
        self.max_batch_tokens = max_batch_tokens
        self._waiting: deque[Sequence] = deque()
        self._running: list[Sequence] = []

    @property
    def num_waiting(self) -> int:
        """Sequences that have not been admitted."""
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        """Sequences that hold blocks."""
        return len(self._running)

    @property
    def has_work(self) -> bool:
        """Something runs or waits."""
        return bool(self._waiting or self._running)

    def blocks_needed(self, sequence: Sequence) -> int:
        """Blocks that the sequence holds from admission to its end."""
        blocks = self.pool.blocks_for(sequence.max_total_tokens)
        return 2 * blocks if sequence.needs_scaling_pass else blocks

    def add(self, sequence: Sequence) -> None:
        """Put a sequence at the end of the queue; the caller has checked that it can ever fit."""
        self._waiting.append(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence, wherever it is, and return its blocks."""
        if sequence in self._running:
            self._running.remove(sequence)
            self.pool.give_back(sequence.blocks)
            self.pool.give_back(sequence.scaling_blocks)
            sequence.blocks, sequence.scaling_blocks = [], []
        else:
            self._waiting.remove(sequence)

    def schedule(self) -> list[ScheduledSequence]:
        """Choose the next step: one token of every decoding sequence, then prompt chunks in order of arrival.

        Decoding goes first so that a long prompt never stalls a stream; a prompt takes what is left of the budget.
        """
        self._admit()
        budget = self.max_batch_tokens
        scheduled = []
        for sequence in sorted(self._running, key=lambda s: not s.is_decoding):
            num_tokens = min(sequence.num_pending, budget)
            if num_tokens == 0:
                break
            scheduled.append(ScheduledSequence(sequence, num_tokens))
            budget -= num_tokens
        return scheduled

    def _admit(self) -> None:
        while self._waiting and len(self._running) < self.max_running:
            sequence = self._waiting[0]
            if self.blocks_needed(sequence) > self.pool.num_free:
                return
            self._waiting.popleft()
            blocks = self.pool.blocks_for(sequence.max_total_tokens)
            sequence.blocks = self.pool.take(blocks)
            if sequence.needs_scaling_pass:
                sequence.scaling_blocks = self.pool.take(blocks)
            self._running.append(sequence)
