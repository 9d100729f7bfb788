"""The texts that tokenizers are compared on: the same ten thousand for every family, drawn with a seed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cache

NUM_STRINGS = 10_000

PIECES: tuple[str, ...] = (
    *("def f(x):\n", "    return x**2  # comment\n", "for(int i=0;i<10;++i){", "}\r\n", "\t", "SELECT * FROM t;"),
    *("</div>", "https://a.b/c?d=e&f=%20", "x_y.z->w", "\\n\\t", "path/to/file.txt\n/etc", "CamelCaseWord", "ALLCAPS"),
    *("the quick brown fox", "don't", "It's", "WE'LL", "'sup", "naïve café", "Straße", "ǅungla", "İstanbul", "ﬁ"),
    *("🙂", "👩‍👩‍👧‍👦", "🇩🇪", "👍🏽", "❤️", "日本語のテキスト", "中文，标点。", "한국어", "العربية", "עברית"),
    *("हिन्दी", "ไทย", "Ελληνικά", "Привет, мир", "Việt Nam", "አማርኛ"),
    *(
        " ",
        "  ",
        "   ",
        "     ",
        "\n",
        "\n\n",
        "\n\n\n",
        " \n ",
        "\t\t",
        "\u00a0",
        "\u2003",
        "\u3000",
        "\u200b",
        "\ufeff",
    ),
    *("\r", "\r\n\r\n", "\x0b", "\x0c", "\u2028", "▁", "▁▁", "a▁b"),
    *("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|im_start", "im_end|>", "<| im_end |>", "<repo_name>"),
    *("<|im_end|><|im_start|>", "<<|im_end|>>", "<REPO_NAME>", "<file_sep>", "<unk>", "<s>", "</s>", "[INST]"),
    *("<|eot_id|>", "<|user|>\n", "<|end|>  \n x", "<start_of_turn>", "<table>", "<0x0A>", "<0xE2>"),
    *("0", "7", "42", "007", "3.14159", "1,000,000", "2024-12-31", "0x1F", "१२३", "٤٥٦", "½", "Ⅷ", "²", "１２"),
    *("\x00", "\x01", "\x1b[31m", "\x7f", "\x85", "\u0301", "e\u0301", "\u202e", "\uffff", "\U0010ffff", "𝔘𝔫𝔦"),
    *("!?…—", "'''", '"""', "====", "-----", "....", "«»“”", "$€£", "^~`|", "+=<>"),
)
"""Words, code, scripts, spaces, control and special tokens whole and broken, digits, marks, punctuation."""

# Where random characters come from: most of the scripts, marks, symbols, pictures and two planes further up.
_RANGES = (
    *((0x20, 0x7E), (0x20, 0x7E), (0x20, 0x7E), (0x00, 0x1F), (0xA0, 0x24F), (0x300, 0x36F), (0x370, 0x52F)),
    *((0x590, 0x6FF), (0x900, 0xDFF), (0x1E00, 0x1FFF), (0x2000, 0x206F), (0x2100, 0x2BFF), (0x3000, 0x30FF)),
    *((0x4E00, 0x9FFF), (0xAC00, 0xD7A3), (0xFF00, 0xFFEF), (0x1F300, 0x1F9FF), (0x10000, 0x10FFFF)),
)


def varied_strings(*, without: Sequence[str] = ()) -> Sequence[str]:
    """Each piece alone, long runs, pieces joined at random, and random characters; none that contains one of some."""
    return [text for text in _drawn() if not any(part in text for part in without)][:NUM_STRINGS]


@cache
def _drawn() -> Sequence[str]:
    draw = random.Random(2)
    runs = [
        "",
        "a" * 5_000,
        " " * 3_000,
        "\n" * 500,
        "=" * 700,
        "ab" * 900,
        "1" * 400,
        "🙂" * 300,
        "<|im_start|>" * 300,
    ]
    made = [*PIECES, *runs]
    while len(made) < 2 * NUM_STRINGS:
        kind = draw.random()
        if kind < 0.7:
            made.append("".join(draw.choices(PIECES, k=draw.randint(2, 10))))
        elif kind < 0.85:
            made.append("".join(chr(draw.randint(*draw.choice(_RANGES))) for _ in range(draw.randint(1, 25))))
        else:
            made.append(draw.choice(PIECES) * draw.randint(2, 12) + draw.choice(PIECES))
    return made


@cache
def corpus() -> Sequence[str]:
    """What the tokenizers of the tests are trained on: other texts of the same kind."""
    draw = random.Random(3)
    return ["".join(draw.choices(PIECES, k=draw.randint(2, 12))) for _ in range(4_000)]
