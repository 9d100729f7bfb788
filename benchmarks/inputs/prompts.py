"""Prompts of an exact number of tokens, no two of which begin alike, so that no prefix cache helps anybody."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable


class Prompts:
    """Never gives the same prompt twice, in the whole run."""

    def __init__(self, count_tokens: Callable[[str], int], seed: int = 0) -> None:
        """`count_tokens` is that of the measured model."""
        self._count_tokens = count_tokens
        self._random = random.Random(seed)
        self._numbers = itertools.count(100_000)

    def next(self, num_tokens: int) -> str:
        """A prompt of so many tokens.

        Raises:
            ValueError: no words of ours fill that number.
        """
        # The number comes first: it is what makes the beginning unlike any other.
        words = [str(next(self._numbers)), *(self._word() for _ in range(num_tokens))]
        low, high = 1, len(words)
        while low < high:  # the most words that fit
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self._tokens(words[:middle]) <= num_tokens else (low, middle - 1)
        text = " ".join(words[:low])
        for filler in ("", "!", " a", " b c", " d e f", " g h i j"):
            if self._count_tokens(text + filler) == num_tokens:
                return text + filler
        raise ValueError(f"no prompt of {num_tokens} tokens can be made of our words")

    def _word(self) -> str:
        return f"word{self._random.randrange(1000)}"

    def _tokens(self, words: list[str]) -> int:
        return self._count_tokens(" ".join(words))
