"""Reads a filter as AIP-160 writes it: `kind = xlora AND (labels.team = "nlp" OR NOT description:draft)`.

As there, OR binds more closely than AND, and terms side by side are joined by AND. Values alone, functions and
wildcards are not understood. https://google.aip.dev/160
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from ordering_svc.domain.filtering import Comparison, Conjunction, Disjunction, Field, Filter, Negation, Operator
from ordering_svc.domain.ordering import AdapterKind
from ordering_svc.domain.problems import shown
from ordering_svc.errors import InvalidValue

MAX_LENGTH = 4096
MAX_DEPTH = 32
MAX_COMPARISONS = 100
LARGEST_NUMBER = 2**63 - 1
_TOKEN = re.compile(
    r"""(?P<space>[ \t\r\n]+)|(?P<quoted>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')|(?P<mark>[()]|[<>!]=|[=<>:])"""
    r"""|(?P<bare>[^ \t\r\n()=<>!:"',]+)""",
    re.DOTALL,
)
_ORDERED = tuple(Operator)[:6]
_EQUALITY = (Operator.EQUAL, Operator.NOT_EQUAL)


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str  # quoted, mark, bare or end
    text: str  # without quotes
    start: int
    end: int


def parse_filter(text: str) -> Filter | None:
    """The filter in the text; nothing passes all.

    Raises:
        InvalidValue: of the field `filter`; names the fault and the character where it is, counted from 1.
    """
    if len(text) > MAX_LENGTH:
        raise _fault(f"it has {len(text)} characters, the limit is {MAX_LENGTH}", MAX_LENGTH)
    if "\0" in text:
        raise _fault("it holds a NUL character", text.index("\0"))
    parser = _Parser(_tokens(text))
    if parser.token.kind == "end":
        return None
    found = parser.expression(0)
    if parser.token.kind != "end":
        raise _fault(f"`{shown(parser.token.text)}` closes nothing", parser.token.start)
    return found


def _fault(what: str, place: int) -> InvalidValue:
    return InvalidValue("filter", f"{what}, at character {place + 1}", position=str(place + 1))


def _tokens(text: str) -> list[_Token]:
    tokens = []
    place = 0
    while place < len(text):
        match = _TOKEN.match(text, place)
        if match is None:
            what = "a quote is not closed" if text[place] in "\"'" else f"`{shown(text[place])}` is not understood"
            raise _fault(what, place)
        kind = str(match.lastgroup)
        content = re.sub(r"\\(.)", r"\1", match[0][1:-1], flags=re.DOTALL) if kind == "quoted" else match[0]
        if kind != "space":
            tokens.append(_Token(kind, content, place, match.end()))
        place = match.end()
    return [*tokens, _Token("end", "", len(text), len(text))]


class _Parser:
    """Goes through the tokens once; `token` is the next one."""

    def __init__(self, tokens: list[_Token]) -> None:
        self._tokens = tokens
        self._place = 0
        self._comparisons = 0

    @property
    def token(self) -> _Token:
        return self._tokens[self._place]

    def _next(self) -> _Token:
        token = self.token
        self._place += 1
        return token

    def _is(self, kind: str, *texts: str) -> bool:
        return self.token.kind == kind and self.token.text in texts

    def expression(self, depth: int) -> Filter:
        """Alternatives joined by AND, or standing side by side."""
        if depth > MAX_DEPTH:
            raise _fault(f"parentheses and negations are nested more than {MAX_DEPTH} deep", self.token.start)
        parts = [self._alternatives(depth)]
        while self.token.kind != "end" and not self._is("mark", ")"):
            if self._is("bare", "AND"):
                self._next()
            parts.append(self._alternatives(depth))
        return parts[0] if len(parts) == 1 else Conjunction(tuple(parts))

    def _alternatives(self, depth: int) -> Filter:
        parts = [self._term(depth)]
        while self._is("bare", "OR"):
            self._next()
            parts.append(self._term(depth))
        return parts[0] if len(parts) == 1 else Disjunction(tuple(parts))

    def _term(self, depth: int) -> Filter:
        if depth > MAX_DEPTH:
            raise _fault(f"parentheses and negations are nested more than {MAX_DEPTH} deep", self.token.start)
        if self._is("bare", "NOT", "-"):
            self._next()
            return Negation(self._term(depth + 1))
        token = self.token
        if token.kind == "bare" and token.text.startswith("-"):
            self._tokens[self._place] = _Token("bare", token.text[1:], token.start + 1, token.end)
            return Negation(self._term(depth + 1))
        if self._is("mark", "("):
            opened = self._next()
            found = self.expression(depth + 1)
            if not self._is("mark", ")"):
                raise _fault("the parenthesis is not closed", opened.start)
            self._next()
            return found
        return self._comparison()

    def _comparison(self) -> Filter:
        self._comparisons += 1
        start = self.token
        if self._comparisons > MAX_COMPARISONS:
            raise _fault(f"it has more than {MAX_COMPARISONS} comparisons", start.start)
        field, key = self._field()
        comparator = self._next()
        if comparator.kind != "mark" or comparator.text in "()":
            raise _fault(
                f"after `{shown(start.text)}` there must be one of {' '.join(o.value for o in Operator)}",
                comparator.start,
            )
        value = self._next()
        if value.kind not in ("bare", "quoted") or (value.kind == "bare" and value.text in ("AND", "OR", "NOT")):
            raise _fault(f"after `{comparator.text}` there must be a value; put it in quotes", value.start)
        return _compared(field, key, Operator(comparator.text), comparator.start, value)

    def _field(self) -> tuple[Field, str | None]:
        token = self._next()
        name, dot, key = token.text.partition(".") if token.kind == "bare" else ("", "", "")
        if name not in {field.value for field in Field} or (dot and name != Field.LABEL.value):
            what = f"`{shown(token.text)}`" if token.kind != "end" else "the end"
            known = ", ".join("labels.KEY" if field is Field.LABEL else field.value for field in Field)
            raise _fault(f"{what} is no field; there are {known}", token.start)
        if dot and not key and self.token.kind == "quoted" and self.token.start == token.end:
            key = self._next().text
        if dot and not key:
            raise _fault("`labels.` needs a key", token.end)
        return Field(name), key if dot else None


def _compared(field: Field, key: str | None, operator: Operator, place: int, token: _Token) -> Comparison:
    read, operators = _VALUES[field]
    if field is Field.LABEL and key is None:
        operators = (Operator.HAS,)
    if operator not in operators:
        name = field.value if key is None else f"{field.value}.{key}"
        known = " ".join(known.value for known in operators)
        raise _fault(f"`{shown(name)}` cannot be compared by `{operator.value}`, only by {known}", place)
    return Comparison(field, operator, read(token), key)


def _text(token: _Token) -> str:
    return token.text


def _kind(token: _Token) -> str:
    kinds = [kind.value for kind in AdapterKind]
    if token.text not in kinds:
        raise _fault(f"`{shown(token.text)}` is no kind; there are {', '.join(kinds)}", token.start)
    return token.text


def _number(token: _Token) -> int:
    if not re.fullmatch(r"-?[0-9]{1,19}", token.text) or abs(int(token.text)) > LARGEST_NUMBER:
        raise _fault(f"`{shown(token.text)}` is not a whole number of at most 63 bits", token.start)
    return int(token.text)


def _time(token: _Token) -> int:
    try:
        time = datetime.fromisoformat(token.text)
        aware = time if time.tzinfo is not None else time.replace(tzinfo=UTC)
        since = aware - datetime(1970, 1, 1, tzinfo=UTC)
    except (ValueError, OverflowError):
        raise _fault(
            f'`{shown(token.text)}` is not a time; write it as "2026-01-31T12:00:00Z", in quotes', token.start
        ) from None
    return (since.days * 86400 + since.seconds) * 1_000_000 + since.microseconds


_VALUES: dict[Field, tuple[Callable[[_Token], str | int], tuple[Operator, ...]]] = {
    Field.ORDERING_ID: (_text, tuple(Operator)),
    Field.KIND: (_kind, _EQUALITY),
    Field.BASE_MODEL_ID: (_text, tuple(Operator)),
    Field.ADAPTER_MODEL_ID: (_text, tuple(Operator)),
    Field.DESCRIPTION: (_text, tuple(Operator)),
    Field.LABEL: (_text, tuple(Operator)),
    Field.CREATE_TIME: (_time, _ORDERED),
    Field.UPDATE_TIME: (_time, _ORDERED),
    Field.REVISION_NUMBER: (_number, _ORDERED),
}
