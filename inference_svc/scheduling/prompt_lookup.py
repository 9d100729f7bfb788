"""Drafts of the next tokens, looked up in the sequence itself: text that repeats goes on as it went on before.

Prompt lookup decoding (https://github.com/apoorvumang/prompt-lookup-decoding): a draft costs no model, is right often
where an answer quotes, lists or goes in circles, and is checked by the model like any draft of speculative decoding
(arXiv 2211.17192). Pure Python.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

LONGEST_MATCH = 4  # tokens; longer ones are as good
# How often the next token of a draft is right, by the length of the match, before any was checked.
FIRST_RATES = {1: 0.3, 2: 0.5, 3: 0.65, LONGEST_MATCH: 0.8}


class HitRates:
    """How often the next token of a draft is right, by the length of the match: what is expected, and what was seen."""

    def __init__(self, expected: HitRates | None = None) -> None:
        """Those of a sequence, of which the same is `expected` as of all others at this moment; None: those of all."""
        self._expected = expected
        self._trials_expected, self._kept = (20.0, 0.99) if expected is None else (2.0, 0.9)
        self._right = dict.fromkeys(FIRST_RATES, 0.0)
        self._trials = dict.fromkeys(FIRST_RATES, 0.0)

    def of(self, match_length: int) -> float:
        """For a match of so many tokens."""
        expected = FIRST_RATES[match_length] if self._expected is None else self._expected.of(match_length)
        right = self._right[match_length] + expected * self._trials_expected
        return right / (self._trials[match_length] + self._trials_expected)

    def note(self, draft: Draft, num_tried: int, num_right: int) -> None:
        """Of the first `num_tried` tokens of a draft, the first `num_right` came true."""
        length, trials = draft.match_length, min(num_right + 1, num_tried)
        self._right[length] = self._kept * self._right[length] + num_right
        self._trials[length] = self._kept * self._trials[length] + trials
        if self._expected is not None:
            self._expected.note(draft, num_tried, num_right)


@dataclass(frozen=True, slots=True)
class Draft:
    """Tokens that may come next."""

    token_ids: list[int]
    match_length: int  # tokens before them that stood before them earlier
    rate: float  # how often each is expected to be right if those before it are


class PromptLookup:
    """Where pairs of tokens and single tokens of one sequence stood last."""

    def __init__(self) -> None:
        self._after: dict[int | tuple[int, int], int] = {}  # a token, or a pair -> the position after it
        self._num_indexed = 1  # positions that are in it as what comes after

    def draft(self, token_ids: Sequence[int], most: int, rates: HitRates) -> Draft | None:
        """At most so many tokens to follow the sequence, which only ever grows; None if its end is new."""
        after = self._after
        for position in range(self._num_indexed, len(token_ids)):
            last = token_ids[position - 1]
            after[last] = position
            if position > 1:
                after[token_ids[position - 2], last] = position
        self._num_indexed = max(self._num_indexed, len(token_ids))
        if most < 1 or len(token_ids) < 2:
            return None
        source = after.get((token_ids[-2], token_ids[-1])) or after.get(token_ids[-1])
        if source is None:
            return None
        length = 1
        while length < min(LONGEST_MATCH, source) and token_ids[source - 1 - length] == token_ids[-1 - length]:
            length += 1
        found = list(token_ids[source : source + most])
        period = len(token_ids) - source
        while len(found) < most:  # the end of the sequence repeats itself already
            found.append(found[len(found) - period])
        return Draft(found, length, rates.of(length))
