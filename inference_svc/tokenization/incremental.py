"""Text from tokens as they come: whole characters only, and never part of a stop string."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol


class TokenBytes(Protocol):
    """What the detokenizer needs of a tokenizer."""

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that a token stands for."""

    def is_special(self, token_id: int) -> bool:
        """A control token, such as the end of text."""

    @property
    def strips_leading_space(self) -> bool:
        """A space at the very beginning of a text was put there by the tokenizer, and is left out of texts."""


class IncrementalDetokenizer:
    """Pieces of text whose concatenation is what the tokenizer decodes from all ids at once.

    A character can be spread over tokens: its bytes are held back until the last one is there. Bytes that can no longer
    become a character give U+FFFD, as in the tokenizer.
    """

    def __init__(
        self, tokenizer: TokenBytes, skip_special_tokens: bool = True, *, continues_text: bool = False
    ) -> None:
        """Begin.

        Args:
            tokenizer: whose ids they are.
            skip_special_tokens: leave control tokens out of the text.
            continues_text: the ids go on from a text that came before, so a space in front is a space.
        """
        self._tokenizer = tokenizer
        self._skip_special_tokens = skip_special_tokens
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._strips_space = tokenizer.strips_leading_space and not continues_text

    def push(self, token_ids: Iterable[int]) -> str:
        """The text that these ids complete.

        Raises:
            InvalidTokenId: no such token.
        """
        tokenizer = self._tokenizer
        pieces = [
            tokenizer.token_bytes(token_id)
            for token_id in token_ids
            if not (self._skip_special_tokens and tokenizer.is_special(token_id))
        ]
        data = b"".join(pieces)
        if data and self._strips_space:
            data = data.removeprefix(b" ")
            self._strips_space = False
        return self._decoder.decode(data)

    def finish(self) -> str:
        """What was held back: U+FFFD if a character stayed incomplete."""
        return self._decoder.decode(b"", final=True)


@dataclass(frozen=True, slots=True)
class StopResult:
    """What a piece of text led to."""

    emit: str  # may be shown: no stop string begins in it
    matched: str | None  # the stop string that ended the text


class StopStrings:
    """Ends a text before the first of some strings; holds back what could still become one.

    The first is the one that is complete first, character by character; of several that end together, the one that
    begins first. So the result does not depend on how the text is cut into pieces.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        """Take the strings; each has at least one character, and there may be none."""
        assert all(stops), "a stop string is not empty"
        self._stops = tuple(stops)
        self._first_characters = frozenset(stop[0] for stop in stops)
        self._longest = max(map(len, stops), default=0)
        self._held = ""
        self._matched: str | None = None

    def push(self, text: str) -> StopResult:
        """Take the next piece. After a match nothing more is emitted."""
        if not self._stops:
            return StopResult(text, None)
        if self._matched is not None:
            return StopResult("", self._matched)
        text = self._held + text
        found = [(start + len(stop), start, stop) for stop in self._stops if (start := text.find(stop)) >= 0]
        if found:
            _, start, self._matched = min(found)
            self._held = ""
            return StopResult(text[:start], self._matched)
        held = self._first_possible_start(text)
        self._held = text[held:]
        return StopResult(text[:held], None)

    def finish(self) -> str:
        """What was held back, once no more text comes."""
        held, self._held = self._held, ""
        return held

    def _first_possible_start(self, text: str) -> int:
        """Where a stop string could begin that the text does not complete; its end if nowhere."""
        for start in range(max(0, len(text) - self._longest + 1), len(text)):
            if text[start] in self._first_characters:
                rest = text[start:]
                if any(stop.startswith(rest) for stop in self._stops):
                    return start
        return len(text)
