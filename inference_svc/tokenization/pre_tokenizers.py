"""How text is cut before BPE merges anything, by the name in `tokenizer.ggml.pre`.

GGUF gives a name only; what it means is defined by the tokenizer.json of the models that llama.cpp maps to that name
(`LLAMA_VOCAB_PRE_TYPE_*` in llama.cpp's src/llama-vocab.cpp holds the same rules as regular expressions). Names that
are not compared with a reference in tests are not listed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from tokenizers import Regex, normalizers, pre_tokenizers

_LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN_2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True, slots=True)
class PreTokenization:
    """What happens to text before merging."""

    pattern: str | None  # cut by this; None: by GPT-2's own
    splits_digits: bool = False  # every digit is a piece of its own
    normalizes_nfc: bool = False
    ignores_merges: bool = False  # a piece that is a token is taken whole, even if no merges lead to it
    adds_bos: bool = False  # unless the file says otherwise

    def pre_tokenizer(self) -> pre_tokenizers.PreTokenizer:
        """For a tokenizers.Tokenizer."""
        if self.pattern is not None:
            return pre_tokenizers.Sequence(
                [
                    pre_tokenizers.Split(Regex(self.pattern), behavior="isolated"),
                    pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
                ]
            )
        gpt_2 = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        if self.splits_digits:
            return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), gpt_2])
        return gpt_2

    def normalizer(self) -> normalizers.Normalizer | None:
        """For a tokenizers.Tokenizer."""
        return normalizers.NFC() if self.normalizes_nfc else None


_GPT_2 = PreTokenization(None)
_DIGITS = PreTokenization(None, splits_digits=True)
_LLAMA_BPE = PreTokenization(_LLAMA_3, ignores_merges=True, adds_bos=True)

PRE_TOKENIZATIONS: Mapping[str, PreTokenization] = MappingProxyType(
    {
        "gpt-2": _GPT_2,
        "smollm": _DIGITS,
        "llama-bpe": _LLAMA_BPE,
        "llama3": _LLAMA_BPE,
        "llama-v3": _LLAMA_BPE,
        "qwen2": PreTokenization(_QWEN_2, normalizes_nfc=True),
    }
)
