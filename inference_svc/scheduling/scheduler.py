"""Continuous batching with chunked prefill: which tokens of which sequences run in the next step. Pure Python."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from inference_svc.kv_cache.blocks import BlockPool
from inference_svc.scheduling.chunks import next_tokens, share_between_prompts, wanted_rows
from inference_svc.scheduling.pace import StepPace
from inference_svc.scheduling.prompt_lookup import HitRates
from inference_svc.scheduling.sequence import ScheduledSequence, Sequence
from inference_svc.scheduling.speculation import Speculation


@dataclass(slots=True)
class SchedulerCounters:
    """What has happened since the start."""

    prompt_tokens: int = 0  # of admitted requests
    cached_prompt_tokens: int = 0  # those of them that were found computed
    preemptions: int = 0
    drafted_tokens: int = 0  # checked by the model
    accepted_tokens: int = 0  # those of them that it would have written itself


class Scheduler:
    """First come, first served: whoever came earlier is admitted earlier and keeps its blocks longer.

    A sequence is admitted when its tokens so far find room, and grows block by block. When there is no block left, the
    youngest gives all of its blocks back and waits, before everybody else, to be computed anew from its tokens. The
    oldest can always grow, because `blocks_needed` of every sequence fits in the pool; so every sequence ends.
    """

    def __init__(
        self, pool: BlockPool, *, max_running: int, max_batch_tokens: int, speculative_tokens: int = 0
    ) -> None:
        """At most `speculative_tokens` of the draft of a sequence are checked in a step; 0: nothing is drafted."""
        self.pool = pool
        self.max_running = max_running
        self.max_batch_tokens = max_batch_tokens
        self.counters = SchedulerCounters()
        self.pace = StepPace()
        self._speculation = Speculation(self.pace, speculative_tokens)
        self._hit_rates = HitRates()
        self._waiting: deque[Sequence] = deque()  # both in order of arrival; all that wait came after all that run
        self._running: list[Sequence] = []

    @property
    def num_waiting(self) -> int:
        """Sequences that have not been admitted, or not again."""
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
        """The most blocks that the sequence can come to hold."""
        return self.pool.blocks_for(sequence.max_total_tokens) + self.pool.blocks_for(sequence.most_scaling_tokens)

    def add(self, sequence: Sequence) -> None:
        """Put a sequence at the end of the queue; the caller has checked that it can ever fit."""
        sequence.hit_rates = HitRates(self._hit_rates)
        self._waiting.append(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence, wherever it is, and return its blocks."""
        if sequence in self._running:
            self._running.remove(sequence)
            self._release(sequence)
        else:
            self._waiting.remove(sequence)

    def schedule(self) -> list[ScheduledSequence]:
        """Choose the next step: one token of every decoding sequence and drafts of more, then chunks of prompts.

        Decoding goes first so that a long prompt never stalls a stream: beside it prompts take what is left of the
        budget, and no more than the pace of steps allows. No pass of the step has more rows than the budget. A scaling
        pass that has skipped positions may need many: then those that decode keep a row each, and what does not fit is
        caught up in the steps that follow.
        """
        self._grow()
        self._admit()
        decoding: list[Sequence] = []
        prompts: list[Sequence] = []
        for sequence in self._running:
            (decoding if sequence.is_decoding else prompts).append(sequence)
        # A row is left for the prompts, so that catching up never keeps the oldest of all from going on.
        budget = self.max_batch_tokens - (1 if prompts else 0)
        scheduled = []
        for num_others, sequence in zip(range(len(decoding) - 1, -1, -1), decoding, strict=True):
            room = max(budget - num_others, min(budget, 1))
            if room == 0:
                break
            scheduled.append(next_tokens(sequence, room))
            budget -= scheduled[-1].num_rows
        scheduled = self._with_drafts(scheduled, budget, has_prompts=bool(prompts))
        num_drafted = sum(item.num_drafted for item in scheduled)
        if prompts:
            budget += 1 - num_drafted
            if decoding:
                num_left = sum(map(wanted_rows, prompts))
                budget = min(
                    budget,
                    self.pace.max_prompt_tokens(len(decoding), len(prompts), num_drafted, num_left=num_left),
                )
            scheduled += share_between_prompts(prompts, budget)
        return scheduled

    def _with_drafts(
        self, decoding: list[ScheduledSequence], budget: int, *, has_prompts: bool
    ) -> list[ScheduledSequence]:
        """The sequences that decode, with as many drafted tokens as are worth it and find room."""
        if not (most := self._speculation.most_tokens):
            return decoding
        drafts = {}
        for index, item in enumerate(decoding):
            if item.num_tokens and (draft := item.sequence.draft(most)):
                drafts[index] = draft
        counts = self._speculation.choose(list(drafts.values()), len(decoding), budget, has_prompts=has_prompts)
        drafted = list(decoding)
        for (index, draft), count in zip(drafts.items(), counts, strict=True):
            if count and self._take_room_for_draft(decoding[index].sequence, count):
                drafted[index] = decoding[index].with_draft(draft, count)
        return drafted

    def _take_room_for_draft(self, sequence: Sequence, count: int) -> bool:
        """Blocks for so many tokens more, unless others may need them soon."""
        missing = self._missing(sequence, count)
        if missing and missing > self.pool.num_free - self._reserve():
            return False
        self._take_missing(sequence, count)
        return True

    def advance(self, item: ScheduledSequence, num_wrong: int = 0) -> None:
        """Note that scheduled tokens have been computed; what is full by now can be shared.

        Of drafted tokens those that came true are in the sequence by now. The last `num_wrong` did not: they count as
        never computed, and what was written for them is written over.
        """
        sequence = item.sequence
        if item.draft is not None:
            num_right = item.num_drafted - num_wrong
            sequence.hit_rates.note(item.draft, item.num_drafted, num_right)
            self.counters.drafted_tokens += item.num_drafted
            self.counters.accepted_tokens += num_right
        sequence.num_computed += item.num_tokens - num_wrong
        sequence.num_reported = max(sequence.num_reported, sequence.num_computed)
        sequence.blocks.publish(self.pool, sequence.token_ids, min(sequence.num_shareable, sequence.num_computed))
        if sequence.scaling_blocks.ids:
            seen = sequence.num_scaling_computed + item.num_scaling_tokens
            sequence.num_scaling_computed = min(seen, sequence.num_computed) if num_wrong else seen
            sequence.scaling_blocks.publish(self.pool, sequence.token_ids, sequence.num_scaling_computed)
            if sequence.is_frozen:
                self._release_scaling(sequence)

    def release_scaling_blocks(self, sequence: Sequence) -> None:
        """End the scaling pass of a sequence: the positions that follow run with frozen scalings.

        Its blocks for the scaling pass are free at once. Should it have to be computed anew, the scaling pass sees the
        positions up to here again, and no further.
        """
        assert sequence.needs_scaling_pass
        sequence.frozen_from = sequence.num_computed
        self._release_scaling(sequence)

    def _grow(self) -> None:
        """Make sure that every running sequence has blocks for its tokens so far, at the cost of the youngest."""
        index = 0
        while index < len(self._running):
            sequence = self._running[index]
            if sequence.must_switch:  # it keeps its place, and what it had: no more than it needs now
                self._release(sequence)
                sequence.switch()
            if self._has_room(sequence):
                index += 1
            elif self._missing(sequence) <= self.pool.num_free:
                self._take_missing(sequence)
                index += 1
            else:
                assert len(self._running) > 1, "a sequence that is alone cannot grow"
                self._preempt(self._running[-1])

    def _preempt(self, sequence: Sequence) -> None:
        self._running.remove(sequence)
        self._release(sequence)
        self._waiting.appendleft(sequence)
        self.counters.preemptions += 1

    def _admit(self) -> None:
        while self._waiting and len(self._running) < self.max_running:
            if not self._start(self._waiting[0]):
                return
            self._running.append(self._waiting.popleft())

    def _start(self, sequence: Sequence) -> bool:
        """Give a sequence the blocks for its tokens so far, computed ones if there are any; False if it must wait.

        The last token is always computed, for its logits. A row of the real pass needs its scalings and so the hidden
        state of its own position in the scaling pass. Shared blocks of the scaling pass hold that too; so the real pass
        may begin where its own shared blocks end, but not beyond those of the scaling pass.
        """
        if sequence.must_switch:
            sequence.switch()
        pool, token_ids = self.pool, sequence.token_ids
        last = len(token_ids) - 1
        limit = min(last, sequence.num_reported) if sequence.reports_positions else last
        shared = sequence.blocks.find_shared(pool, token_ids, min(limit, sequence.num_shareable))
        scaling_shared: list[int] = []
        scaling_tokens = sequence.num_scaling_tokens
        if sequence.frozen_from is not None and len(shared) * pool.block_size >= sequence.frozen_from:
            scaling_tokens = 0
        if scaling_tokens:
            scaling_shared = sequence.scaling_blocks.find_shared(pool, token_ids, scaling_tokens)
            del shared[len(scaling_shared) :]
        missing = pool.blocks_for(len(token_ids)) - len(shared) + pool.blocks_for(scaling_tokens) - len(scaling_shared)
        unheld = sum(not pool.is_held(block) for block in {*shared, *scaling_shared})
        if missing + unheld > pool.num_free - self._reserve():
            return False
        sequence.blocks.start(pool, shared)
        sequence.num_computed = len(shared) * pool.block_size
        sequence.scaling_blocks.start(pool, scaling_shared)
        sequence.num_scaling_computed = len(scaling_shared) * pool.block_size
        self._take_missing(sequence)
        if sequence.num_cached_prompt_tokens is None:
            sequence.num_cached_prompt_tokens = sequence.num_computed
            self.counters.prompt_tokens += sequence.num_prompt_tokens
            self.counters.cached_prompt_tokens += sequence.num_computed
        return True

    def _reserve(self) -> int:
        """Blocks to leave free when another sequence is admitted: those that run can each grow by one in every pass."""
        return sum(2 if sequence.scaling_blocks.ids else 1 for sequence in self._running)

    def _has_room(self, sequence: Sequence) -> bool:
        """Its blocks hold its tokens so far, as in most steps; a scaling pass never sees more of them."""
        num_tokens, size = len(sequence.token_ids), self.pool.block_size
        if num_tokens > len(sequence.blocks.ids) * size:
            return False
        if not sequence.needs_scaling_pass or sequence.is_frozen:
            return True
        return num_tokens <= len(sequence.scaling_blocks.ids) * size

    def _missing(self, sequence: Sequence, num_drafted: int = 0) -> int:
        """Blocks that its tokens so far, and so many drafted ones, take beyond those it has."""
        pool = self.pool
        missing = sequence.blocks.missing(pool, len(sequence.token_ids) + num_drafted)
        if sequence.needs_scaling_pass and not sequence.is_frozen:
            missing += sequence.scaling_blocks.missing(pool, sequence.num_scaling_tokens + num_drafted)
        return missing

    def _take_missing(self, sequence: Sequence, num_drafted: int = 0) -> None:
        sequence.blocks.grow(self.pool, len(sequence.token_ids) + num_drafted)
        if sequence.needs_scaling_pass and not sequence.is_frozen:
            sequence.scaling_blocks.grow(self.pool, sequence.num_scaling_tokens + num_drafted)

    def _release(self, sequence: Sequence) -> None:
        # The scaling pass goes last and so stays longest: its contents serve more requests.
        sequence.blocks.release(self.pool)
        sequence.num_computed = 0
        self._release_scaling(sequence)

    def _release_scaling(self, sequence: Sequence) -> None:
        sequence.scaling_blocks.release(self.pool)
        sequence.num_scaling_computed = 0
