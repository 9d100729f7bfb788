"""The tokenizer that a GGUF file describes."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import AddedToken, Tokenizer, decoders, models

from inference_svc.tokenization.chat_template import ChatTemplate
from inference_svc.tokenization.errors import UnsupportedTokenizer
from inference_svc.tokenization.pre_tokenizers import PRE_TOKENIZATIONS, PreTokenization
from inference_svc.tokenization.tokenizer import ModelTokenizer, SpecialTokens
from inference_svc.weights.errors import MalformedFile
from inference_svc.weights.gguf import GgufFile

# Values of `tokenizer.ggml.token_type`.
_CONTROL = 3
_USER_DEFINED = 4

# Keys of tokens that end an answer: the text, the turn, the message.
_ENDS = ("eos", "eot", "eom")


def tokenizer_from_gguf(gguf: GgufFile) -> ModelTokenizer:
    """Build the tokenizer from a file's metadata.

    Raises:
        UnsupportedTokenizer: its model or pre-tokenizer is not supported.
        MalformedFile: a key is missing, of the wrong type, or contradicts another.
    """
    keys = _TokenizerKeys(gguf)
    pre = _pre_tokenization(keys)
    tokens = keys.strings("tokenizer.ggml.tokens")
    token_types = keys.integers("tokenizer.ggml.token_type", len(tokens))
    vocabulary = {token: index for index, token in enumerate(tokens)}
    if len(vocabulary) != len(tokens):
        raise keys.malformed(f"'tokenizer.ggml.tokens' holds {len(tokens) - len(vocabulary)} tokens twice")
    backend = Tokenizer(
        models.BPE(vocab=vocabulary, merges=_merges(keys, vocabulary), ignore_merges=pre.ignores_merges)
    )
    backend.normalizer = pre.normalizer()
    backend.pre_tokenizer = pre.pre_tokenizer()
    backend.decoder = decoders.ByteLevel()
    control = [index for index, kind in enumerate(token_types) if kind == _CONTROL]
    user_defined = [index for index, kind in enumerate(token_types) if kind == _USER_DEFINED]
    backend.add_special_tokens([AddedToken(tokens[index], normalized=False, special=True) for index in control])
    backend.add_tokens([AddedToken(tokens[index], normalized=False, special=False) for index in user_defined])
    special = SpecialTokens(
        bos_token_id=keys.token_id("bos", len(tokens)),
        eos_token_id=keys.token_id("eos", len(tokens)),
        eos_token_ids=frozenset(token_id for end in _ENDS if (token_id := keys.token_id(end, len(tokens))) is not None),
        control_token_ids=frozenset(control),
        adds_bos=keys.flag("tokenizer.ggml.add_bos_token", pre.adds_bos),
        adds_eos=keys.flag("tokenizer.ggml.add_eos_token", False),
    )
    return ModelTokenizer(backend, special, _chat_template(keys, tokens))


class _TokenizerKeys:
    """Typed access to metadata."""

    def __init__(self, gguf: GgufFile) -> None:
        self._gguf = gguf

    def malformed(self, message: str) -> MalformedFile:
        return MalformedFile(str(self._gguf.path), message)

    def text(self, key: str, default: str) -> str:
        value = self._gguf.metadata.get(key, default)
        if not isinstance(value, str):
            raise self.malformed(f"metadata key {key!r} is {value!r:.80}, not a string")
        return value

    def flag(self, key: str, default: bool) -> bool:
        value = self._gguf.metadata.get(key, default)
        if not isinstance(value, bool):
            raise self.malformed(f"metadata key {key!r} is {value!r:.80}, not a boolean")
        return value

    def strings(self, key: str) -> list[str]:
        value = self._gguf.metadata.get(key)
        if not isinstance(value, list) or not value or not isinstance(value[0], str):
            raise self.malformed(f"metadata key {key!r} is {value!r:.80}, not a list of strings")
        return [str(item) for item in value]

    def integers(self, key: str, count: int) -> list[int]:
        value = self._gguf.metadata.get(key)
        if not isinstance(value, list) or type(value[0] if value else None) is not int or len(value) != count:
            raise self.malformed(f"metadata key {key!r} is {value!r:.80}, not a list of {count} whole numbers")
        return [int(item) for item in value]

    def token_id(self, name: str, num_tokens: int) -> int | None:
        key = f"tokenizer.ggml.{name}_token_id"
        value = self._gguf.metadata.get(key)
        if value is None:
            return None
        if type(value) is not int or not 0 <= value < num_tokens:
            raise self.malformed(f"metadata key {key!r} is {value!r:.80}, not one of the ids 0 to {num_tokens - 1}")
        return value


def _pre_tokenization(keys: _TokenizerKeys) -> PreTokenization:
    model = keys.text("tokenizer.ggml.model", "")
    if model != "gpt2":
        raise UnsupportedTokenizer(
            f"The model file's tokenizer is of the kind {model!r}: only 'gpt2' (byte-level BPE) is supported."
        )
    name = keys.text("tokenizer.ggml.pre", "")
    pre = PRE_TOKENIZATIONS.get(name)
    if pre is None:
        says = f"states the pre-tokenizer {name!r}" if name else "names no pre-tokenizer"
        raise UnsupportedTokenizer(f"The model file {says}; supported are {', '.join(sorted(PRE_TOKENIZATIONS))}.")
    return pre


def _merges(keys: _TokenizerKeys, vocabulary: dict[str, int]) -> list[tuple[str, str]]:
    merges: list[tuple[str, str]] = []
    for merge in keys.strings("tokenizer.ggml.merges"):
        # Neither part can contain a space: the byte alphabet writes it as another character.
        left, space, right = merge.partition(" ")
        if not space or left not in vocabulary or right not in vocabulary or left + right not in vocabulary:
            raise keys.malformed(
                f"'tokenizer.ggml.merges' holds {merge!r:.200}, which does not join two tokens to a third"
            )
        merges.append((left, right))
    return merges


def _chat_template(keys: _TokenizerKeys, tokens: Sequence[str]) -> ChatTemplate | None:
    source = keys.text("tokenizer.chat_template", "")
    if not source:
        return None
    names = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    special_tokens = {
        variable: tokens[token_id]
        for variable, name in names.items()
        if (token_id := keys.token_id(name, len(tokens))) is not None
    }
    return ChatTemplate(source, special_tokens)
