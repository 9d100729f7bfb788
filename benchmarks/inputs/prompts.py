"""Prompts of an exact number of tokens, no two of which begin alike, so that no prefix cache helps anybody."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from string import ascii_lowercase

from benchmarks.accuracy.texts import one_long_text

EXCERPTS_TRIED = 20  # of some no beginning has as many tokens as are wanted


class Prompts:
    """Natural English. Never gives the same prompt twice, in the whole run."""

    def __init__(self, count_tokens: Callable[[str], int], seed: int = 0) -> None:
        """`count_tokens` is that of the measured model."""
        self._count_tokens = count_tokens
        self._random = random.Random(seed)
        self._numbers = itertools.count(100_000)
        self._words = one_long_text().split()

    def next(self, num_tokens: int) -> str:
        """A prompt of so many tokens.

        Raises:
            ValueError: no words of ours fill that number.
        """
        for _ in range(EXCERPTS_TRIED):
            # The number comes first: it is what makes the beginning unlike any other.
            words = [str(next(self._numbers)), *self._excerpt(num_tokens)]
            low, high = 1, len(words)
            while low < high:  # the most words that fit
                middle = (low + high + 1) // 2
                low, high = (middle, high) if self._tokens(words[:middle]) <= num_tokens else (low, middle - 1)
            for letters in ("", *itertools.accumulate(f" {letter}" for letter in ascii_lowercase)):
                if self._count_tokens(text := " ".join(words[:low]) + letters) == num_tokens:
                    return text
        raise ValueError(f"no prompt of {num_tokens} tokens can be made of our words")

    def _excerpt(self, num_words: int) -> list[str]:
        first = self._random.randrange(len(self._words))
        return (self._words[first:] + self._words[:first])[:num_words]

    def _tokens(self, words: list[str]) -> int:
        return self._count_tokens(" ".join(words))
