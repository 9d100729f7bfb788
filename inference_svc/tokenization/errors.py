"""What can be wrong with a tokenizer, or with what it is given.

TokenizationError
├── UnsupportedTokenizer   the model's files describe a tokenizer of a kind that is not supported
├── WrongVocabularySize    the tokenizer is not that of the model
├── ChatTemplateError      the conversation cannot be rendered: the template refuses it, breaks or runs too long
├── InvalidTokenId         no such token
└── InvalidText            text that is not Unicode
"""

from __future__ import annotations


class TokenizationError(Exception):
    """Text, ids or a conversation cannot be converted; the message is a full sentence."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class UnsupportedTokenizer(TokenizationError):
    """The model's files describe a tokenizer of a kind that is not supported."""


class WrongVocabularySize(TokenizationError):
    """The tokenizer is not that of the model: it has more tokens than the model knows, or far fewer."""

    def __init__(self, source: str, num_tokens: int, vocab_size: int) -> None:
        super().__init__(
            f"The tokenizer of {source} has {num_tokens} tokens, and the model's vocabulary {vocab_size}: they do not "
            "belong together. Use the tokenizer files that came with the model."
        )
        self.num_tokens = num_tokens
        self.vocab_size = vocab_size


class ChatTemplateError(TokenizationError):
    """The conversation cannot be rendered: the template refuses it, breaks or runs too long."""


class InvalidTokenId(TokenizationError):
    """No such token."""

    def __init__(self, token_id: int, vocab_size: int) -> None:
        super().__init__(f"There is no token {token_id}: the vocabulary has the ids 0 to {vocab_size - 1}.")
        self.token_id = token_id
        self.vocab_size = vocab_size


class InvalidText(TokenizationError):
    """Text that is not Unicode: it holds lone surrogates."""
