"""How text is cut before byte-level BPE merges anything, by the name in `tokenizer.ggml.pre`.

GGUF gives a name only; what it means is defined by the tokenizer.json of the models that llama.cpp maps to that name
(`LLAMA_VOCAB_PRE_TYPE_*` in llama.cpp's src/llama-vocab.cpp holds the same rules as regular expressions). Names that
are not compared with a reference in tests are not listed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from tokenizers import Regex, normalizers, pre_tokenizers

_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_SYMBOLS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"

# A word may begin with capitals, and then goes on in what is no capital.
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED_1, _CASED_2 = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+", rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
_SYMBOLS_OR_PATH = r" ?[^\s\p{L}\p{N}]+[\r\n/]*"

_GPT_2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA_3 = rf"{_CONTRACTION}|{_WORD}|\p{{N}}{{1,3}}|{_SYMBOLS}|{_SPACES}"
_QWEN_2 = rf"{_CONTRACTION}|{_WORD}|\p{{N}}|{_SYMBOLS}|{_SPACES}"
_TEKKEN = rf"{_CASED_1}|{_CASED_2}|\p{{N}}|{_SYMBOLS_OR_PATH}|{_SPACES}"
_GPT_4O = rf"{_CASED_1}{_CONTRACTION}?|{_CASED_2}{_CONTRACTION}?|\p{{N}}{{1,3}}|{_SYMBOLS_OR_PATH}|{_SPACES}"
_SEED_CODER = rf"{_CONTRACTION}|{_WORD}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_SPACES}"
_SEPARATORS = "|.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c"
_BLOOM = rf" ?[^(\s{_SEPARATORS})]+"

# The letters that DeepSeek lists one by one. Written as escapes: editors and tools normalize some of them.
_DEEPSEEK_LETTERS = (
    "A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373"
    "\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f"
    "\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77"
    "\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d"
    "\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb"
    "\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128"
    "\u212a-\u212d\u212f-\u2134\u2139\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4"
    "\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf"
    "\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3"
    "\U000104d8-\U000104fb\U00010c80-\U00010cb2\U00010cc0-\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943"
)
_DEEPSEEK_PUNCTUATION = "!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002"
_HAN_TO_HANGUL = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
_HAN_AND_KANA = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
_DEEPSEEK_3 = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
    rf"| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_SPACES}"
)


@dataclass(frozen=True, slots=True)
class PreTokenization:
    """What happens to text before merging."""

    patterns: tuple[str, ...] = ()  # cut by each in turn: what matches and what lies between are pieces
    splits_digits: bool = False  # then every digit is a piece of its own
    is_gpt_2: bool = False  # then pieces are cut by GPT-2's own pattern
    normalizes_nfc: bool = False
    ignores_merges: bool = False  # a piece that is a token is taken whole, even if no merges lead to it
    adds_bos: bool = False  # unless the file says otherwise

    def pre_tokenizer(self) -> pre_tokenizers.PreTokenizer:
        """For a tokenizers.Tokenizer."""
        steps: list[pre_tokenizers.PreTokenizer] = [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in self.patterns
        ]
        if self.splits_digits:
            steps.append(pre_tokenizers.Digits(individual_digits=True))
        steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=self.is_gpt_2))
        return pre_tokenizers.Sequence(steps)

    def normalizer(self) -> normalizers.Normalizer | None:
        """For a tokenizers.Tokenizer."""
        return normalizers.NFC() if self.normalizes_nfc else None


_GPT_2 = PreTokenization(is_gpt_2=True)
_DIGITS = PreTokenization(splits_digits=True, is_gpt_2=True)
_CL100K = PreTokenization((_LLAMA_3,))
_LLAMA_BPE = replace(_CL100K, ignores_merges=True, adds_bos=True)
_SINGLE_DIGITS = PreTokenization((_QWEN_2,))
_O200K = PreTokenization((_GPT_4O,))
_V3 = PreTokenization((r"\p{N}{1,3}", _HAN_AND_KANA, _DEEPSEEK_3))


def _named(rules: PreTokenization, *names: str) -> dict[str, PreTokenization]:
    return dict.fromkeys(names, rules)


PRE_TOKENIZATIONS: Mapping[str, PreTokenization] = MappingProxyType(
    {
        # What llama.cpp takes for a file of which it knows nothing.
        "default": PreTokenization((r"[\p{P}$+<=>^~|]+", _GPT_2_PATTERN, r"\p{N}+", "[0-9][0-9][0-9]")),
        "qwen2": replace(_SINGLE_DIGITS, normalizes_nfc=True),
        "tekken": PreTokenization((_TEKKEN,), ignores_merges=True, adds_bos=True),
        "glm4": replace(_CL100K, ignores_merges=True),
        "seed-coder": PreTokenization((_SEED_CODER,)),
        "viking": PreTokenization((_BLOOM,), splits_digits=True),
        "deepseek-llm": PreTokenization(
            (
                r"[\r\n]",
                rf"\s?[{_DEEPSEEK_LETTERS}]+",
                rf"\s?[{_DEEPSEEK_PUNCTUATION}]+",
                r"\s+$",
                _HAN_TO_HANGUL,
            ),
            splits_digits=True,
        ),
        "deepseek-coder": PreTokenization((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _HAN_TO_HANGUL), splits_digits=True),
        **_named(_GPT_2, "gpt-2", "phi-2", "mpt", "olmo", "jais", "exaone4", "mellum", "gigachat", "a.x-4.0"),
        **_named(_GPT_2, "trillion", "granite-docling"),
        **_named(_DIGITS, "smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b", "mellum2"),
        **_named(_LLAMA_BPE, "llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"),
        **_named(_CL100K, "dbrx", "smaug-bpe", "chatglm-bpe"),
        **_named(_SINGLE_DIGITS, "stablelm2", "deepseek-r1-qwen", "megrez", "kormo", "f2llmv2", "hunyuan", "grok-2"),
        **_named(_SINGLE_DIGITS, "solar-open"),
        **_named(_O200K, "gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"),
        **_named(_V3, "deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"),
        **_named(PreTokenization((_BLOOM,)), "bloom", "poro-chat", "gpt3-finnish"),
    }
)
