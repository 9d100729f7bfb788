"""The tokenizer that a GGUF file describes."""

from __future__ import annotations

from dataclasses import dataclass

from tokenizers import AddedToken, Tokenizer, models

from inference_svc.tokenization.chat_template import ChatTemplate, NoChatTemplate
from inference_svc.tokenization.errors import UnsupportedTokenizer
from inference_svc.tokenization.gguf_keys import PREFIX, TokenizerKeys
from inference_svc.tokenization.pre_tokenizers import PRE_TOKENIZATIONS, PreTokenization
from inference_svc.tokenization.sentence_piece import normalizer, sentence_piece_model
from inference_svc.tokenization.token_text import BYTE_TOKENS, ByteLevelText, SentencePieceText, TokenText
from inference_svc.tokenization.tokenizer import END_TEXTS, ModelTokenizer, SpecialTokens, check_vocab_size
from inference_svc.weights.gguf import GgufFile

# Values of `tokenizer.ggml.model`, and of `tokenizer.ggml.token_type`.
_KINDS = ("gpt2", "llama")
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6

# Keys of tokens that end an answer: the text, the turn, the message.
_ENDS = ("eos", "eot", "eom")
# Phi-3 leaves out white space after its tokens for roles and ends (`rstrip` in its tokenizer_config.json), so that the
# line breaks of its template are none of the ids. GGUF has no key for it; these are the ones without.
_PHI_3_ARCHITECTURE = "phi3"
_PHI_3_NOT_STRIPPING = frozenset(("<unk>", "<s>", "<|endoftext|>"))


@dataclass(frozen=True, slots=True)
class _Vocabulary:
    """The tokens of a file: `ids` of `tokens`, and the `types` of all."""

    tokens: list[str]
    ids: dict[str, int]
    types: list[int]

    def of_types(self, *types: int) -> list[int]:
        return [index for index, kind in enumerate(self.types) if kind in types]


@dataclass(frozen=True, slots=True)
class _Kind:
    """What the kinds of tokenizers differ in."""

    backend: Tokenizer
    text: TokenText
    adds_bos: bool  # unless the file says otherwise
    default_ids: dict[str, int]


def tokenizer_from_gguf(gguf: GgufFile, vocab_size: int | None = None) -> ModelTokenizer:
    """Build the tokenizer from a file's metadata.

    Args:
        gguf: the file.
        vocab_size: number of ids that the model knows; None: as many as there are tokens.

    Raises:
        UnsupportedTokenizer: its model or pre-tokenizer is not supported.
        MalformedFile: a key is missing, of the wrong type, or contradicts another.
        WrongVocabularySize: the model knows fewer ids, or many more.
    """
    keys = TokenizerKeys(gguf.path, gguf.metadata)
    kind_name = keys.text(f"{PREFIX}model", "")
    if kind_name not in _KINDS:
        raise UnsupportedTokenizer(
            f"The model file's tokenizer is of the kind {kind_name!r}; supported are "
            "'gpt2' (byte-level BPE) and 'llama' (SentencePiece BPE)."
        )
    pre = _pre_tokenization(keys) if kind_name == "gpt2" else None
    vocabulary = _vocabulary(keys)
    kind = _byte_level(keys, vocabulary, pre) if pre is not None else _sentence_piece(keys, vocabulary)
    is_phi_3 = pre is None and keys.text("general.architecture", "") == _PHI_3_ARCHITECTURE
    _add_tokens(kind.backend, vocabulary, is_phi_3=is_phi_3)
    special = _special_tokens(keys, vocabulary, kind)
    template = _chat_template(keys, vocabulary, kind)
    check_vocab_size(str(gguf.path), len(vocabulary.tokens), vocab_size)
    return ModelTokenizer(kind.backend, kind.text, special, template, vocab_size)


def _vocabulary(keys: TokenizerKeys) -> _Vocabulary:
    tokens = keys.strings(f"{PREFIX}tokens")
    types = keys.integers(f"{PREFIX}token_type", len(tokens))
    ids = {token: index for index, token in enumerate(tokens)}
    if len(ids) != len(tokens):
        raise keys.malformed(f"'{PREFIX}tokens' holds {len(tokens) - len(ids)} tokens twice")
    return _Vocabulary(tokens, ids, types)


def _byte_level(keys: TokenizerKeys, vocabulary: _Vocabulary, pre: PreTokenization) -> _Kind:
    merges = _merges(keys, vocabulary.ids)
    backend = Tokenizer(models.BPE(vocab=vocabulary.ids, merges=merges, ignore_merges=pre.ignores_merges))
    text_normalizer = pre.normalizer()
    if text_normalizer is not None:
        backend.normalizer = text_normalizer
    backend.pre_tokenizer = pre.pre_tokenizer()
    return _Kind(backend, ByteLevelText(), pre.adds_bos, {})


def _sentence_piece(keys: TokenizerKeys, vocabulary: _Vocabulary) -> _Kind:
    if keys.has(f"{PREFIX}precompiled_charsmap"):
        # `tokenizers` can apply one, but not as SentencePiece does: it loses combining marks.
        raise UnsupportedTokenizer(
            "The model file's tokenizer rewrites characters by a 'precompiled_charsmap': of the kind 'llama', only "
            "tokenizers that leave them as they are (the normalization 'identity') are supported."
        )
    scores = keys.numbers(f"{PREFIX}scores", len(vocabulary.tokens))
    pieces = {vocabulary.tokens[index]: scores[index] for index in vocabulary.of_types(_NORMAL, _UNUSED)}
    byte_tokens = {vocabulary.tokens[index] for index in vocabulary.of_types(_BYTE)}
    if byte_tokens and byte_tokens != set(BYTE_TOKENS):
        odd = sorted(byte_tokens ^ set(BYTE_TOKENS))
        raise keys.malformed(
            f"'{PREFIX}token_type' marks {len(byte_tokens)} tokens as bytes; the 256 from '<0x00>' to '<0xFF>' are "
            f"expected, or none: {odd[0]!r:.80} is missing or too much"
        )
    defaults = {"bos": 1, "eos": 2, "unknown": 0}
    unknown = keys.token_id("unknown", len(vocabulary.tokens), defaults["unknown"]) or 0
    adds_space_prefix = keys.flag(f"{PREFIX}add_space_prefix", True)
    backend = Tokenizer(
        sentence_piece_model(
            vocabulary.ids,
            pieces,
            unknown=vocabulary.tokens[unknown],
            falls_back_to_bytes=bool(byte_tokens),
        )
    )
    backend.normalizer = normalizer(
        adds_space_prefix=adds_space_prefix,
        removes_extra_spaces=keys.flag(f"{PREFIX}remove_extra_whitespaces", False),
    )
    text = SentencePieceText(strips_leading_space=adds_space_prefix, falls_back_to_bytes=bool(byte_tokens))
    return _Kind(backend, text, True, defaults)


def _add_tokens(backend: Tokenizer, vocabulary: _Vocabulary, *, is_phi_3: bool) -> None:
    def added(index: int, *, is_special: bool) -> AddedToken:
        token = vocabulary.tokens[index]
        strips = is_phi_3 and token not in _PHI_3_NOT_STRIPPING
        return AddedToken(token, normalized=False, special=is_special, rstrip=strips)

    backend.add_special_tokens([added(index, is_special=True) for index in vocabulary.of_types(_UNKNOWN, _CONTROL)])
    backend.add_tokens([added(index, is_special=False) for index in vocabulary.of_types(_USER_DEFINED)])


def _special_tokens(keys: TokenizerKeys, vocabulary: _Vocabulary, kind: _Kind) -> SpecialTokens:
    def named(name: str) -> int | None:
        return keys.token_id(name, len(vocabulary.tokens), kind.default_ids.get(name))

    def around(name: str, default: bool) -> tuple[int, ...]:
        key = f"{PREFIX}add_{name}_token"
        if not keys.flag(key, default):
            return ()
        token_id = named(name)
        if token_id is not None:
            return (token_id,)
        if keys.has(key):
            raise keys.malformed(f"metadata key {key!r} is true, but there is no '{PREFIX}{name}_token_id'")
        return ()

    ends = {token_id for name in _ENDS if (token_id := named(name)) is not None}
    texts = {index for index in vocabulary.of_types(_CONTROL, _USER_DEFINED) if vocabulary.tokens[index] in END_TEXTS}
    return SpecialTokens(
        bos_token_id=named("bos"),
        eos_token_ids=frozenset(ends | texts),
        control_token_ids=frozenset(vocabulary.of_types(_UNKNOWN, _CONTROL)),
        before=around("bos", kind.adds_bos),
        after=around("eos", False),
    )


def _pre_tokenization(keys: TokenizerKeys) -> PreTokenization:
    name = keys.text(f"{PREFIX}pre", "")
    pre = PRE_TOKENIZATIONS.get(name)
    if pre is None:
        says = f"states the pre-tokenizer {name!r}" if name else "names no pre-tokenizer"
        raise UnsupportedTokenizer(f"The model file {says}; supported are {', '.join(sorted(PRE_TOKENIZATIONS))}.")
    return pre


def _merges(keys: TokenizerKeys, vocabulary: dict[str, int]) -> list[tuple[str, str]]:
    merges: list[tuple[str, str]] = []
    for merge in keys.strings(f"{PREFIX}merges"):
        # Neither part can contain a space: the byte alphabet writes it as another character.
        left, space, right = merge.partition(" ")
        if not space or left not in vocabulary or right not in vocabulary or left + right not in vocabulary:
            raise keys.malformed(f"'{PREFIX}merges' holds {merge!r:.200}, which does not join two tokens to a third")
        merges.append((left, right))
    return merges


def _chat_template(keys: TokenizerKeys, vocabulary: _Vocabulary, kind: _Kind) -> ChatTemplate | NoChatTemplate:
    source = keys.text("tokenizer.chat_template", "")
    if not source:
        return NoChatTemplate()
    names = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    special_tokens = {
        variable: vocabulary.tokens[token_id]
        for variable, name in names.items()
        if (token_id := keys.token_id(name, len(vocabulary.tokens), kind.default_ids.get(name))) is not None
    }
    return ChatTemplate(source, special_tokens)
