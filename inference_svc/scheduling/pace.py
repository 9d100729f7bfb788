"""How many prompt tokens may join a step without stalling the streams that decode. Pure Python."""

from __future__ import annotations

# A step with prompt tokens takes at most about so many times as long as one without. A stream whose tokens come in
# steps of decoding alone so never waits for more than five of them, even if the estimate is a third too low.
LONGEST_STEP = 4.0
# Nobody notices a pause of so many seconds, and small chunks of prompts cost more than they are worth: where few
# streams decode, a step may take as long.
UNNOTICED_SECONDS = 0.05
UNMEASURED_PROMPT_TOKENS = 64
WEIGHT_OF_THE_NEWEST = 0.2
# The fewer prompt tokens a step has, the more of its time is chance.
PROMPT_TOKENS_OF_FULL_WEIGHT = 16


class StepPace:
    """Learns from the steps that ran what decoding and what a prompt token costs on this machine, with this model."""

    def __init__(self) -> None:
        self._decoding_seconds: dict[int, float] = {}  # number of decoding sequences -> seconds a step
        self._prompt_token_seconds: float | None = None

    def note(self, num_decoding: int, num_prompt_tokens: int, seconds: float) -> None:
        """A step of so many decoding sequences and prompt tokens took so long."""
        if num_prompt_tokens == 0:
            known = self._decoding_seconds.get(num_decoding)
            self._decoding_seconds[num_decoding] = _moved(known, seconds, WEIGHT_OF_THE_NEWEST)
            return
        decoding = self._decoding_step(num_decoding) if num_decoding else None
        # Where nothing is known of decoding, a prompt token is said to cost more than it does, never less.
        each = max((seconds - (decoding or 0.0)) / num_prompt_tokens, seconds / 1000)
        weight = WEIGHT_OF_THE_NEWEST * min(1.0, num_prompt_tokens / PROMPT_TOKENS_OF_FULL_WEIGHT)
        self._prompt_token_seconds = _moved(self._prompt_token_seconds, each, weight)

    def max_prompt_tokens(self, num_running: int) -> int:
        """Prompt tokens that may join a step in which others decode, at least one.

        What a step may take is measured by the step in which all that run will decode: where most sequences still
        compute their prompts, it is in everybody's interest that they do not decode one by one.
        """
        decoding = self._decoding_step(num_running)
        if decoding is None or self._prompt_token_seconds is None:
            return UNMEASURED_PROMPT_TOKENS
        spare = max((LONGEST_STEP - 1.0) * decoding, UNNOTICED_SECONDS - decoding)
        return max(1, int(spare / self._prompt_token_seconds))

    def _decoding_step(self, num_decoding: int) -> float | None:
        """Seconds of a step of decoding alone, by the nearest number of sequences that was measured."""
        if not self._decoding_seconds:
            return None
        nearest = min(self._decoding_seconds, key=lambda known: (abs(known - num_decoding), known))
        return self._decoding_seconds[nearest]


def _moved(average: float | None, newest: float, weight: float) -> float:
    """A moving average that one step, held up by something else on the machine, does not carry far."""
    return newest if average is None else average + weight * (min(newest, 2 * average) - average)
