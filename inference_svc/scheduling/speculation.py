"""How many drafted tokens a step checks: as many as make tokens come faster on this machine. Pure Python."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from itertools import accumulate

from inference_svc.scheduling.pace import StepPace
from inference_svc.scheduling.prompt_lookup import Draft

# Up to so many rows each one more is weighed; beyond, a few at once: kernels work in blocks of rows.
WEIGHED_SINGLY = 8
ROWS_AT_ONCE = 4
# What rows cost can change; so often as many tokens of each draft are tried as have not been for the longest time.
STEPS_BETWEEN_TRIALS = 64


class Speculation:
    """Weighs the tokens that drafts are expected to yield against what their rows have cost so far."""

    def __init__(self, pace: StepPace, most_tokens: int) -> None:
        """At most `most_tokens` of each draft are checked in a step; 0: none."""
        self.most_tokens = most_tokens
        self._pace = pace
        self._num_choices = 0

    def choose(self, drafts: Seq[Draft], num_decoding: int, room: int, *, has_prompts: bool = False) -> list[int]:
        """How many tokens of each draft to check, at most `room` rows together, beside a row of each that decodes.

        Beside prompts nothing is tried: what rows cost is not measured there, and the step is long as it is.
        """
        self._num_choices += not has_prompts
        turn, since_trial = divmod(self._num_choices, STEPS_BETWEEN_TRIALS)
        is_trial = since_trial == 0 and not has_prompts
        most = turn % self.most_tokens + 1 if is_trial else self.most_tokens
        gains = sorted(
            (-(draft.rate ** (place + 1)), place, number)
            for number, draft in enumerate(drafts)
            for place in range(min(most, len(draft.token_ids)))
        )[: max(0, room)]
        count = len(gains) if is_trial else self._best_count([-gain for gain, _, _ in gains], num_decoding)
        chosen = [0] * len(drafts)
        for _, _, number in gains[:count]:
            chosen[number] += 1
        return chosen

    def _best_count(self, gains: Seq[float], num_decoding: int) -> int:
        """So many of the gains, which fall, that the tokens expected of a step are most for its time."""
        best_count, best_rate = 0, 0.0
        for count, gained in enumerate(accumulate(gains, initial=0.0)):
            num_rows = num_decoding + count
            if num_rows > WEIGHED_SINGLY and num_rows % ROWS_AT_ONCE and 0 < count < len(gains):
                continue
            seconds = self._pace.decoding_seconds(num_rows)
            if seconds is None:
                return 0  # nothing is known yet: the first steps are plain ones
            rate = (num_decoding + gained) / seconds
            if rate > best_rate:
                best_count, best_rate = count, rate
        return best_count
