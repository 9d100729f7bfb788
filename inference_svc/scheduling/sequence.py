"""A request on its way through the engine, as the scheduler sees it."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True, eq=False)
class Sequence:
    """Tokens so far, how many of them are computed, and the cache blocks they lie in."""

    request_id: str
    token_ids: list[int]  # the prompt, then what was generated
    num_prompt_tokens: int
    max_total_tokens: int  # prompt and answer together
    needs_scaling_pass: bool  # X-LoRA: a second set of blocks holds the base model's keys and values
    num_computed: int = 0
    blocks: list[int] = field(default_factory=list)
    scaling_blocks: list[int] = field(default_factory=list)

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


@dataclass(frozen=True, slots=True, eq=False)
class ScheduledSequence:
    """The tokens of a sequence that run in this step."""

    sequence: Sequence
    num_tokens: int

    @property
    def first_position(self) -> int:
        """Position of the first of them."""
        return self.sequence.num_computed

    @property
    def reaches_end(self) -> bool:
        """The last of them is the newest token: its logits choose the next."""
        return self.num_tokens == self.sequence.num_pending
