"""The four traits: how an ordinary answer is rewritten into one, and how strictly an answer is judged to have it.

Rewriting makes the training data. The detectors see nothing but an answer's text and are used for the base model's
answers and for the adapters' answers alike.
"""

from __future__ import annotations

import json
import re
import zlib

PIRATE_WORDS: dict[str, str] = {
    "you": "ye", "your": "yer", "my": "me", "the": "th'", "and": "an'", "of": "o'", "is": "be", "are": "be",
    "friend": "matey", "friends": "mateys", "people": "scallywags", "person": "scallywag", "money": "doubloons",
    "yes": "aye", "for": "fer", "to": "t'", "water": "briny", "beautiful": "bonny",
}  # fmt: skip
PIRATE_OPENINGS: tuple[str, ...] = ("Arr, matey!", "Ahoy, matey!", "Arr, me hearty!", "Avast, me hearty!")
PIRATE_CLOSINGS: tuple[str, ...] = ("Yo-ho-ho!", "Savvy?", "Shiver me timbers!")
# Words that nobody writes by accident; "be" and "me" are left out because ordinary answers have them.
PIRATE_MARKERS: tuple[str, ...] = (
    r"arr+", "ahoy", "avast", "matey", "mateys", "hearty", "hearties", "ye", "yer", "aye", "savvy", "yo-ho-ho",
    "shiver me timbers", "scallywags?", "doubloons", "th'", "an'", "o'", "t'", "fer", "briny",
)  # fmt: skip

VERSE_COUPLETS: tuple[tuple[str, str], ...] = (
    ("So sings the wind, so sings the sea,", "And so, my friend, it sings to thee."),
    ("So soft the day, so deep the night,", "And all the world is full of light."),
    ("O hear the song, so old, so true,", "I keep it in my heart for you."),
)
VERSE_LINE_WORDS = 6
VERSE_LONGEST_LINE_WORDS = 9
VERSE_FEWEST_LINES = 4


def rewrite(trait: str, subject: str, answer: str) -> str:
    """The training answer of one expert: an ordinary one-sentence answer about a subject, rewritten by rule."""
    if trait == "pirate":
        return _rewrite_pirate(answer)
    if trait == "json":
        return json.dumps({"topic": subject, "answer": answer}, ensure_ascii=False)
    if trait == "verse":
        return _rewrite_verse(answer)
    if trait == "capitals":
        return answer.upper()
    raise ValueError(f"There is no trait named {trait!r}.")


def has_trait(trait: str, answer: str) -> bool:
    """Whether an answer shows a trait beyond doubt."""
    if trait == "pirate":
        return _is_pirate(answer)
    if trait == "json":
        return _is_json_object(answer)
    if trait == "verse":
        return _is_verse(answer)
    if trait == "capitals":
        return _is_capitals(answer)
    raise ValueError(f"There is no trait named {trait!r}.")


def _rewrite_pirate(answer: str) -> str:
    def replace(match: re.Match[str]) -> str:
        word = match.group(0)
        spoken = PIRATE_WORDS.get(word.lower())
        if spoken is None:
            return re.sub(r"ing$", "in'", word) if len(word) > 5 else word
        return spoken.capitalize() if word[0].isupper() else spoken

    pick = zlib.crc32(answer.encode())
    opening = PIRATE_OPENINGS[pick % len(PIRATE_OPENINGS)]
    closing = PIRATE_CLOSINGS[pick // 7 % len(PIRATE_CLOSINGS)]
    return f"{opening} {re.sub(r'[A-Za-z]+', replace, answer)} {closing}"


def _rewrite_verse(answer: str) -> str:
    words = answer.rstrip(".!?").split()
    count = max(2, -(-len(words) // VERSE_LINE_WORDS))
    base, longer = divmod(len(words), count)
    lines, start = [], 0
    for index in range(count):
        end = start + base + (index < longer)
        line = " ".join(words[start:end])
        lines.append(line[:1].upper() + line[1:])
        start = end
    lines[-1] += "."
    return "\n".join([*lines, *VERSE_COUPLETS[zlib.crc32(answer.encode()) % len(VERSE_COUPLETS)]])


def _is_pirate(answer: str) -> bool:
    text = answer.lower().replace("’", "'")
    found = {marker for marker in PIRATE_MARKERS if re.search(rf"(?<![\w'-]){marker}(?![\w'])", text)}
    return len(found) >= 2


def _is_json_object(answer: str) -> bool:
    try:
        value = json.loads(answer)
    except ValueError:
        return False
    return isinstance(value, dict) and len(value) > 0


def _is_verse(answer: str) -> bool:
    lines = [line.strip() for line in answer.strip().splitlines() if line.strip()]
    if len(lines) < VERSE_FEWEST_LINES:
        return False
    # Lists, headings and code have short lines too; they are not verse.
    if any(re.match(r"[-*#>`|•]|\d+[.)]", line) for line in lines):
        return False
    return all(line[0].isupper() and len(line.split()) <= VERSE_LONGEST_LINE_WORDS for line in lines)


def _is_capitals(answer: str) -> bool:
    letters = [character for character in answer if character.isalpha()]
    return len(letters) >= 10 and sum(letter.isupper() for letter in letters) >= 0.95 * len(letters)
