"""A request on its way through the engine, as the scheduler sees it."""

from __future__ import annotations

from dataclasses import dataclass, field

from inference_svc.kv_cache.block_table import BlockTable
from inference_svc.scheduling.granularity import (
    EVERY_TOKEN,
    EveryToken,
    Granularity,
    RecomputedEvery,
    most_scaling_tokens,
    scaling_source,
)
from inference_svc.scheduling.prompt_lookup import Draft, HitRates, PromptLookup


def _unshared() -> BlockTable:
    return BlockTable(None)


@dataclass(slots=True, eq=False)
class Sequence:
    """Tokens so far, how many of them are computed, and the cache blocks they lie in."""

    request_id: str
    token_ids: list[int]  # the prompt, then what was generated
    num_prompt_tokens: int
    max_total_tokens: int  # prompt and answer together
    needs_scaling_pass: bool  # X-LoRA: a second set of blocks holds keys and values of the scaling pass
    granularity: Granularity = EVERY_TOKEN  # X-LoRA: which positions have scalings of their own
    reports_positions: bool = False  # the client wants something of every position, not only of the last
    blocks: BlockTable = field(default_factory=_unshared)
    scaling_blocks: BlockTable = field(default_factory=_unshared)
    num_computed: int = 0  # positions whose keys and values lie in `blocks`
    num_scaling_computed: int = 0  # the same for `scaling_blocks`
    num_reported: int = 0  # positions whose results were handed over; recomputed ones are not handed over again
    num_cached_prompt_tokens: int | None = None  # those that were found computed; None: never admitted
    # Positions from here on run with scalings that other requests would not have: no scaling pass, nothing shared.
    frozen_from: int | None = None
    # Once there are more tokens than this, all of them have other rotary positions: what was computed is of no use.
    switch_length: int | None = None
    has_switched: bool = False
    # The prompt is computed in another way than what is generated: never in one pass, and shared as a prompt alone.
    separates_prompts: bool = False
    lookup: PromptLookup = field(default_factory=PromptLookup)
    hit_rates: HitRates = field(default_factory=HitRates)  # of drafts

    @property
    def must_switch(self) -> bool:
        """The tokens so far are more than what is computed was meant for."""
        return self.switch_length is not None and not self.has_switched and len(self.token_ids) > self.switch_length

    def switch(self) -> None:
        """Begin anew with the rotary positions of long sequences; the caller has given the blocks back."""
        self.has_switched = True
        for table in (self.blocks, self.scaling_blocks):
            table.begin_anew(f" of more than {self.switch_length} tokens")

    @property
    def rotary_offset(self) -> int:
        """What to add to a position to find its row in the rotary tables."""
        return self.switch_length if self.has_switched and self.switch_length is not None else 0

    @property
    def num_generated(self) -> int:
        """New tokens so far."""
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def num_pending(self) -> int:
        """Tokens that are known but not computed."""
        return len(self.token_ids) - self.num_computed

    @property
    def is_decoding(self) -> bool:
        """Only the newest token is missing."""
        return self.num_pending == 1 and self.num_generated > 0

    def draft(self, most: int) -> Draft | None:
        """At most so many tokens that may come next, of a sequence that decodes; the last token is never among them.

        A token whose scalings may turn out to be the last is not computed together with one that would have them: of
        X-LoRA sequences only those are drafted whose scalings are frozen, or never will be and come one by one.
        """
        if self.needs_scaling_pass and not self.is_frozen and not isinstance(self.granularity, EveryToken):
            return None
        most = min(most, self.max_total_tokens - len(self.token_ids) - 1)
        if self.switch_length is not None and not self.has_switched:
            most = min(most, self.switch_length - len(self.token_ids))
        return self.lookup.draft(self.token_ids, most, self.hit_rates) if most > 0 else None

    @property
    def num_scaling_tokens(self) -> int:
        """Positions that the scaling pass has to see, among the tokens so far."""
        if not self.needs_scaling_pass:
            return 0
        needed = self.scaling_source(len(self.token_ids) - 1) + 1
        return needed if self.frozen_from is None else min(self.frozen_from, needed)

    @property
    def most_scaling_tokens(self) -> int:
        """The same at the end, at most."""
        if not self.needs_scaling_pass:
            return 0
        return most_scaling_tokens(self.granularity, self.num_prompt_tokens, self.max_total_tokens)

    def scaling_source(self, position: int) -> int:
        """The position whose hidden state in the scaling pass gives the scalings of a position that is not frozen."""
        return scaling_source(self.granularity, self.num_prompt_tokens, position)

    def num_scaling_rows(self, num_tokens: int) -> int:
        """Rows of the scaling pass without which the next tokens have no scalings; skipped positions are caught up."""
        if not self.needs_scaling_pass or self.is_frozen or not num_tokens:
            return 0
        return max(0, self.scaling_source(self.num_computed + num_tokens - 1) + 1 - self.num_scaling_computed)

    @property
    def num_shareable(self) -> int:
        """Positions that any other request would compute in the same way: only their blocks are shared.

        With other scalings it would not; nor, where prompts are separated, what was generated here as part of a prompt.
        """
        if self.separates_prompts or (isinstance(self.granularity, RecomputedEvery) and self.granularity.passes > 1):
            most = self.num_prompt_tokens
        else:
            most = self.max_total_tokens
        return most if self.frozen_from is None else min(most, self.frozen_from)

    @property
    def is_frozen(self) -> bool:
        """The next position runs without a scaling pass, though earlier ones had one."""
        return self.frozen_from is not None and self.num_computed >= self.frozen_from


@dataclass(frozen=True, slots=True, eq=False)
class ScheduledSequence:
    """The tokens of a sequence that run in this step."""

    sequence: Sequence
    num_tokens: int  # 0: the scaling pass alone, which has more to catch up than fits in a step
    num_scaling_tokens: int  # rows of the scaling pass: what the tokens need, without what is computed
    draft: Draft | None = None
    num_drafted: int = 0  # of the tokens: the last of them are the first of the draft, and may turn out to be wrong

    def with_draft(self, draft: Draft, num_drafted: int) -> ScheduledSequence:
        """The same and the first tokens of a draft."""
        num_tokens = self.num_tokens + num_drafted
        num_scaling_tokens = self.sequence.num_scaling_rows(num_tokens)
        return ScheduledSequence(self.sequence, num_tokens, num_scaling_tokens, draft, num_drafted)

    def token_ids(self, positions: range) -> list[int]:
        """The tokens at positions that run in this step, in either pass."""
        known = self.sequence.token_ids[positions.start : positions.stop]
        if len(known) == len(positions):
            return known
        assert self.draft is not None
        return known + self.draft.token_ids[: len(positions) - len(known)]

    @property
    def is_of_prompt(self) -> bool:
        """Its tokens are the prompt's: all or, where prompts are separated, none of them; without, the first is."""
        return self.first_position < self.sequence.num_prompt_tokens

    @property
    def num_rows(self) -> int:
        """Rows in that pass of the step that has more."""
        return max(self.num_tokens, self.num_scaling_tokens)

    @property
    def scaling_positions(self) -> range:
        """What the scaling pass sees."""
        first = self.sequence.num_scaling_computed
        return range(first, first + self.num_scaling_tokens)

    @property
    def first_position(self) -> int:
        """Position of the first of them."""
        return self.sequence.num_computed

    @property
    def positions(self) -> range:
        """Positions of all of them."""
        return range(self.first_position, self.first_position + self.num_tokens)

    @property
    def reaches_end(self) -> bool:
        """The newest token is among them: its logits choose the next."""
        return self.num_tokens - self.num_drafted == self.sequence.num_pending
