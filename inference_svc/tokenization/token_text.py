"""What tokens stand for: the two spellings of bytes in vocabularies, and the space that is none of the text's.

A text is the bytes of its tokens, read as UTF-8; what is no UTF-8 gives U+FFFD. `tokenizers` and SentencePiece agree
with that wherever the bytes are text. Where byte-fallback tokens are not, `tokenizers` makes U+FFFD of every byte of
the run, those of whole characters too, and could show none of them before the run ends.
"""

from __future__ import annotations

import re
from typing import Protocol

from inference_svc.tokenization.byte_alphabet import BYTE_OF_CHARACTER

SPACE_MARK = "\u2581"
BYTE_TOKENS: tuple[str, ...] = tuple(f"<0x{byte:02X}>" for byte in range(256))

_BYTE_TOKEN = re.compile("<0x([0-9A-Fa-f]{2})>")


class TokenText(Protocol):
    """How a vocabulary spells bytes."""

    @property
    def strips_leading_space(self) -> bool:
        """A space at the very beginning of a text was put there by the tokenizer, and is left out."""

    def token_bytes(self, token: str) -> bytes:
        """The bytes that a token of the vocabulary stands for."""


class ByteLevelText:
    """Every byte is a character of the alphabet of byte_alphabet.py."""

    strips_leading_space = False

    def token_bytes(self, token: str) -> bytes:
        """The bytes that a token stands for."""
        try:
            return bytes([BYTE_OF_CHARACTER[character] for character in token])
        except KeyError:
            return token.encode()  # an added token with characters outside of the alphabet


class SentencePieceText:
    """U+2581 is a space, `<0x0A>` a byte; all else is as it reads."""

    def __init__(self, *, strips_leading_space: bool, falls_back_to_bytes: bool) -> None:
        self.strips_leading_space = strips_leading_space
        self._falls_back_to_bytes = falls_back_to_bytes

    def token_bytes(self, token: str) -> bytes:
        """The bytes that a token stands for."""
        if self._falls_back_to_bytes and (byte := _BYTE_TOKEN.fullmatch(token)):
            return bytes([int(byte[1], 16)])
        return token.replace(SPACE_MARK, " ").encode()
