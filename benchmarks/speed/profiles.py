"""The sizes of what is measured: those of the table of targets, and others, for which ratios have to hold too."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Profile:
    """Lengths in tokens; lists are dealt out to the streams in turn."""

    name: str
    prompt_tokens: int  # of a single stream
    new_tokens: int
    crowd_prompt_tokens: tuple[int, ...]
    crowd_new_tokens: tuple[int, ...]
    streams: int
    ranks: tuple[int, ...]  # of the LoRA adapters
    xlora_rank: int
    experts: int  # adapters of the mixture
    short_prompt_tokens: int = 16  # of the latecomer whose first token is waited for
    long_prompt_tokens: int = 2000  # of those that must not stall the others

    @property
    def slot_tokens(self) -> int:
        """What the longest stream needs of a context."""
        crowd = max(self.crowd_prompt_tokens) + max(self.crowd_new_tokens)
        return max(crowd, self.prompt_tokens + self.new_tokens)


TABLE = Profile("table", 143, 64, (143,), (64,), 16, ranks=(16,), xlora_rank=16, experts=4)
VARIED = Profile("varied", 301, 100, (45, 97, 210, 333), (48, 96, 32, 64), 12, (4, 8, 32, 64), xlora_rank=8, experts=3)
PROFILES = {profile.name: profile for profile in (TABLE, VARIED)}
