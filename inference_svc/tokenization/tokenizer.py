"""The model's tokenizer: text, conversations and token ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tokenizers import Tokenizer

from inference_svc.tokenization.byte_alphabet import BYTE_OF_CHARACTER
from inference_svc.tokenization.chat_template import ChatTemplate, ChatTurn
from inference_svc.tokenization.errors import ChatTemplateError, InvalidText, InvalidTokenId


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One message of a conversation."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class SpecialTokens:
    """Token ids with a meaning, as far as the model has them."""

    bos_token_id: int | None
    eos_token_id: int | None  # what follows a text in training
    eos_token_ids: frozenset[int]  # any of them ends an answer
    control_token_ids: frozenset[int]  # left out of text for people
    adds_bos: bool
    adds_eos: bool


class ModelTokenizer:
    """Byte-level BPE with the model's special tokens and chat template. Safe to use from several threads."""

    def __init__(self, backend: Tokenizer, special: SpecialTokens, chat_template: ChatTemplate | None) -> None:
        """Wrap a tokenizer.

        Args:
            backend: a byte-level BPE tokenizer, special tokens added.
            special: which ids mean what.
            chat_template: None if the model has none; conversations are refused then.
        """
        self._backend = backend
        self._special = special
        self._chat_template = chat_template
        self.vocab_size: int = backend.get_vocab_size(with_added_tokens=True)
        self._bytes_of: dict[int, bytes] = {}  # of tokens that were asked for

    @property
    def bos_token_id(self) -> int | None:
        """The token that begins a text, if the model has one."""
        return self._special.bos_token_id

    @property
    def eos_token_ids(self) -> frozenset[int]:
        """The tokens that end an answer."""
        return self._special.eos_token_ids

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Text to ids; text that looks like a special token becomes that token, as in transformers.

        Args:
            text: any Unicode text.
            add_special_tokens: add the tokens that the model wants around a text (often none).

        Raises:
            InvalidText: the text holds lone surrogates.
        """
        try:
            ids: list[int] = self._backend.encode(text, add_special_tokens=False).ids
        except (UnicodeEncodeError, TypeError) as error:
            raise InvalidText("The text is not valid Unicode: it holds a lone surrogate.") from error
        special = self._special
        if not add_special_tokens:
            return ids
        before = [special.bos_token_id] if special.adds_bos and special.bos_token_id is not None else []
        after = [special.eos_token_id] if special.adds_eos and special.eos_token_id is not None else []
        return [*before, *ids, *after]

    def render_chat(self, turns: Sequence[ChatTurn]) -> str:
        """A conversation as text, ending where the assistant's answer begins.

        Raises:
            ChatTemplateError: the model has no template, or it refuses the conversation.
        """
        if self._chat_template is None:
            raise ChatTemplateError("The model file has no chat template: give the prompt as text or token ids.")
        return self._chat_template.render(turns)

    def encode_chat(self, turns: Sequence[ChatTurn]) -> list[int]:
        """A conversation to ids: rendered, then encoded with nothing added, because the template writes it all.

        As in transformers' `apply_chat_template`, a message that contains `<|im_end|>` contains that token: whoever
        passes on messages of people who are not trusted to do that removes it first.

        Raises:
            ChatTemplateError: the model has no template, or it refuses the conversation.
            InvalidText: a message holds lone surrogates.
        """
        return self.encode(self.render_chat(turns), add_special_tokens=False)

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool) -> str:
        """Ids to text; bytes that are no UTF-8 give U+FFFD.

        Raises:
            InvalidTokenId: no such token.
        """
        for token_id in token_ids:
            self._check(token_id)
        text: str = self._backend.decode(list(token_ids), skip_special_tokens=skip_special_tokens)
        return text

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that a token stands for: part of a character, one, or several.

        Raises:
            InvalidTokenId: no such token.
        """
        known = self._bytes_of.get(token_id)
        if known is None:
            known = self._bytes_of[token_id] = self._look_up(token_id)
        return known

    def _look_up(self, token_id: int) -> bytes:
        self._check(token_id)
        token = self._backend.id_to_token(token_id)
        assert token is not None, token_id
        try:
            return bytes([BYTE_OF_CHARACTER[character] for character in token])
        except KeyError:
            return token.encode()  # a special token with characters outside of the alphabet

    def is_special(self, token_id: int) -> bool:
        """A control token, such as the end of text."""
        return token_id in self._special.control_token_ids

    def _check(self, token_id: int) -> None:
        if not 0 <= token_id < self.vocab_size:
            raise InvalidTokenId(token_id, self.vocab_size)
