"""How many prompt tokens may join a step without stalling the streams that decode. Pure Python."""

from __future__ import annotations

import math

# A step with prompt tokens takes at most about so many times as long as one without; a little longer if it ends the
# prompts, for steps vary, and of many a stream notices the longest. It takes longer in proportion to how many prompts
# there are for each sequence that decodes, up to a limit: the few wait for the many, and soon all decode together. No
# stream waits for more than five steps of decoding alone, even if a step takes somewhat longer than was estimated.
LONGEST_STEP = 2.0
LONGEST_LAST_STEP = 2.35
MOST_PATIENT_STEP = 4.0
# Nobody notices a pause of so many seconds, and small chunks of prompts cost more than they are worth: where few
# streams decode, a step may take as long.
UNNOTICED_SECONDS = 0.04
# Where nothing has been measured: that many, and a row more makes a step longer by a twentieth of its fixed part.
UNMEASURED_PROMPT_TOKENS = 64
FIXED_PART_IN_ROWS = 20
WEIGHT_OF_THE_NEWEST = 0.2


class StepPace:
    """Learns from the steps that ran what decoding and what a prompt token costs on this machine, with this model."""

    def __init__(self) -> None:
        self._decoding_seconds: dict[int, float] = {}  # rows of sequences that decode -> seconds a step
        # A prompt token's seconds are the slope of the line through what prompts have added to steps. Steps with many
        # prompt tokens decide it: in those with few most of the difference is chance.
        self._tokens_times_seconds = 0.0
        self._tokens_squared = 0.0
        self._recent_token_seconds = 0.0  # what a token has cost in the last two or three steps
        self._most_prompt_tokens = UNMEASURED_PROMPT_TOKENS // 2  # in a step that was measured

    def note(self, num_rows: int, num_prompt_tokens: int, seconds: float) -> None:
        """A step took so long, with so many prompt tokens beside the rows of sequences that decode."""
        if num_prompt_tokens == 0:
            known = self._decoding_seconds.get(num_rows, seconds)
            # A step that something else on the machine held up does not carry the average far.
            change = min(seconds, 1.5 * known) - known
            self._decoding_seconds[num_rows] = known + WEIGHT_OF_THE_NEWEST * change
            return
        # Where nothing is known of decoding, a prompt token is said to cost more than it does, never less.
        added = seconds - (self.decoding_seconds(num_rows) or 0.0)
        if self._tokens_squared:
            added = min(added, 4 * num_prompt_tokens * self._prompt_token_seconds())
        added = max(added, seconds / 100)
        kept = 1 - WEIGHT_OF_THE_NEWEST
        self._tokens_times_seconds = kept * self._tokens_times_seconds + num_prompt_tokens * added
        self._tokens_squared = kept * self._tokens_squared + num_prompt_tokens**2
        newest = min(added / num_prompt_tokens, 2 * self._prompt_token_seconds())  # not one that something held up
        self._recent_token_seconds = (self._recent_token_seconds + newest) / 2
        self._most_prompt_tokens = max(self._most_prompt_tokens, num_prompt_tokens)

    def max_prompt_tokens(
        self, num_decoding: int, num_prompts: int, num_drafted: int = 0, *, num_left: float = math.inf
    ) -> int:
        """Prompt tokens that may join a step in which others decode, and have drafted tokens checked; at least one.

        num_left: tokens that the prompts have yet to compute, all together.

        What a step may take is measured by the step in which all that run will decode: where most sequences still
        compute their prompts, it is in everybody's interest that they do not decode one by one. Twice the most that was
        measured is the limit: beyond, the line may not go on as it began.
        """
        decoding = self.decoding_seconds(num_decoding + num_prompts + num_drafted)
        if decoding is None or not self._tokens_squared:
            return UNMEASURED_PROMPT_TOKENS
        patience = 1.0 + num_prompts / num_decoding

        def tokens_in(longest: float) -> int:
            spare = (min(longest * patience, MOST_PATIENT_STEP) - 1.0) * decoding
            tokens = int(max(spare, UNNOTICED_SECONDS - decoding) / self._dearest_token_seconds())
            return max(1, min(tokens, 2 * self._most_prompt_tokens))

        last = tokens_in(LONGEST_LAST_STEP)
        return last if num_left <= last else tokens_in(LONGEST_STEP)

    def _prompt_token_seconds(self) -> float:
        return self._tokens_times_seconds / self._tokens_squared

    def _dearest_token_seconds(self) -> float:
        """A token further into a long prompt sees more of it and costs more: the mean lags behind."""
        return max(self._recent_token_seconds, self._prompt_token_seconds())

    def decoding_seconds(self, num_rows: int) -> float | None:
        """Seconds of a step of decoding alone, from the nearest number of rows that was measured."""
        if not num_rows or not self._decoding_seconds:
            return None
        nearest = min(self._decoding_seconds, key=lambda known: (abs(known - num_rows), known))
        return self._decoding_seconds[nearest] * (FIXED_PART_IN_ROWS + num_rows) / (FIXED_PART_IN_ROWS + nearest)
