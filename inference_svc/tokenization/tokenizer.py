"""The model's tokenizer: text, conversations and token ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tokenizers import Tokenizer

from inference_svc.tokenization.chat_template import ChatTemplate, ChatTurn, NoChatTemplate
from inference_svc.tokenization.errors import InvalidText, InvalidTokenId, UnsupportedTokenizer, WrongVocabularySize
from inference_svc.tokenization.incremental import IncrementalDetokenizer
from inference_svc.tokenization.token_text import TokenText

# Models round their vocabulary up, by 2.3 % at most among those known (DeepSeek-V2: 100,002 tokens, 102,400 rows).
MIN_SHARE_OF_TOKENS = 0.9
# Many files name no token but the end of a text, and say by the template only how a turn ends. Added tokens of these
# texts end an answer too (llama.cpp keeps such a list, `special_eog_ids`).
END_TEXTS = frozenset(
    {
        *("<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<|end|>", "<|endoftext|>", "<|end_of_text|>", "<end_of_turn>"),
        *("<EOT>", "<\uff5cend\u2581of\u2581sentence\uff5c>"),
    }
)


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One message of a conversation."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class SpecialTokens:
    """Token ids with a meaning, as far as the model has them."""

    bos_token_id: int | None
    eos_token_ids: frozenset[int]  # any of them ends an answer
    control_token_ids: frozenset[int]  # left out of text for people
    before: tuple[int, ...]  # what the model wants before a text
    after: tuple[int, ...]  # and after it


class ModelTokenizer:
    """A tokenizer with the model's special tokens and chat template. Safe to use from several threads."""

    def __init__(
        self,
        backend: Tokenizer,
        text: TokenText,
        special: SpecialTokens,
        chat_template: ChatTemplate | NoChatTemplate,
        vocab_size: int | None = None,
    ) -> None:
        """Wrap a tokenizer.

        Args:
            backend: encodes; special tokens added.
            text: what its tokens stand for.
            special: which ids mean what.
            chat_template: makes conversations text, or refuses them.
            vocab_size: number of ids that the model knows, if more than there are tokens; the rest stand for nothing.
        """
        self._backend = backend
        self._text = text
        self._special = special
        self._chat_template = chat_template
        self.vocab_size: int = vocab_size or backend.get_vocab_size(with_added_tokens=True)
        self._bytes_of: dict[int, bytes] = {}  # of tokens that were asked for

    @property
    def bos_token_id(self) -> int | None:
        """The token that begins a text, if the model has one."""
        return self._special.bos_token_id

    @property
    def eos_token_ids(self) -> frozenset[int]:
        """The tokens that end an answer."""
        return self._special.eos_token_ids

    @property
    def strips_leading_space(self) -> bool:
        """A space at the very beginning of a text was put there by the tokenizer, and is left out of texts."""
        return self._text.strips_leading_space

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Text to ids; text that looks like a special token becomes that token, as in transformers.

        Args:
            text: any Unicode text.
            add_special_tokens: add the tokens that the model wants around a text (often none).

        Raises:
            InvalidText: the text holds lone surrogates.
            UnsupportedTokenizer: the tokenizers library breaks over the model's files with this text.
        """
        try:
            ids: list[int] = self._backend.encode(text, add_special_tokens=False).ids
        except (UnicodeEncodeError, TypeError) as error:
            raise InvalidText("The text is not valid Unicode: it holds a lone surrogate.") from error
        except BaseException as error:
            if isinstance(error, Exception | KeyboardInterrupt | SystemExit):
                raise
            # A panic of the library, which is no Exception: whoever asked would get no answer.
            raise UnsupportedTokenizer(
                f"The tokenizers library breaks over the model's tokenizer with this text ({error!s:.200}): ask with "
                "token ids, or correct the model's tokenizer.json."
            ) from error
        return [*self._special.before, *ids, *self._special.after] if add_special_tokens else ids

    def render_chat(self, turns: Sequence[ChatTurn]) -> str:
        """A conversation as text, ending where the assistant's answer begins.

        Raises:
            ChatTemplateError: the model has no template, or it refuses the conversation.
        """
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
        detokenizer = IncrementalDetokenizer(self, skip_special_tokens)
        return detokenizer.push(token_ids) + detokenizer.finish()

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that a token stands for: part of a character, one, several, or none.

        Raises:
            InvalidTokenId: no such token.
        """
        known = self._bytes_of.get(token_id)
        if known is None:
            known = self._bytes_of[token_id] = self._look_up(token_id)
        return known

    def _look_up(self, token_id: int) -> bytes:
        if not 0 <= token_id < self.vocab_size:
            raise InvalidTokenId(token_id, self.vocab_size)
        token = self._backend.id_to_token(token_id)
        return b"" if token is None else self._text.token_bytes(token)

    def is_special(self, token_id: int) -> bool:
        """A control token, such as the end of text."""
        return token_id in self._special.control_token_ids


def check_vocab_size(source: str, num_tokens: int, vocab_size: int | None) -> None:
    """Compare a tokenizer with the model that it is to serve.

    Args:
        source: where the tokenizer is from.
        num_tokens: how many ids it can produce.
        vocab_size: how many the model knows; None: not known, all is well.

    Raises:
        WrongVocabularySize: the model knows fewer ids, or so many more that it is another tokenizer's.
    """
    if vocab_size is not None and not MIN_SHARE_OF_TOKENS * vocab_size <= num_tokens <= vocab_size:
        raise WrongVocabularySize(source, num_tokens, vocab_size)
