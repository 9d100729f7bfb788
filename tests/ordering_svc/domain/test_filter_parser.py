"""Reading filters: what is understood, and how a fault is told."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ordering_svc.domain.filter_parser import MAX_COMPARISONS, MAX_DEPTH, MAX_LENGTH, parse_filter
from ordering_svc.domain.filtering import Comparison, Conjunction, Disjunction, Field, Negation, Operator
from ordering_svc.errors import InvalidValue

A = Comparison(Field.ORDERING_ID, Operator.EQUAL, "a")
B = Comparison(Field.DESCRIPTION, Operator.HAS, "b c")
C = Comparison(Field.LABEL, Operator.NOT_EQUAL, "1", "k")


@pytest.mark.parametrize("text", ["", "  ", "\n\t"])
def test_nothing_asks_for_all(text: str) -> None:
    assert parse_filter(text) is None


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("ordering_id=a", A),
        (" ( ordering_id = 'a' ) ", A),
        ('ordering_id = a AND description:"b c"', Conjunction((A, B))),
        ('ordering_id = a description:"b c"', Conjunction((A, B))),
        ('ordering_id=a OR description:"b c" AND labels.k!=1', Conjunction((Disjunction((A, B)), C))),
        ('ordering_id=a OR (description:"b c" AND labels.k!=1)', Disjunction((A, Conjunction((B, C))))),
        ("NOT ordering_id=a", Negation(A)),
        ("-ordering_id=a", Negation(A)),
        ("-(ordering_id=a)", Negation(A)),
        ("NOT NOT ordering_id=a", Negation(Negation(A))),
        ('labels."k"!=1', C),
        ("labels:team", Comparison(Field.LABEL, Operator.HAS, "team")),
        ("labels.a.b = x", Comparison(Field.LABEL, Operator.EQUAL, "x", "a.b")),
        ("revision_number >= -3", Comparison(Field.REVISION_NUMBER, Operator.AT_LEAST, -3)),
        ('create_time < "1970-01-01T00:00:01.5Z"', Comparison(Field.CREATE_TIME, Operator.LESS, 1_500_000)),
        ('create_time < "1970-01-01T01:00:00+01:00"', Comparison(Field.CREATE_TIME, Operator.LESS, 0)),
        ("update_time > 1970-01-02", Comparison(Field.UPDATE_TIME, Operator.GREATER, 86_400_000_000)),
        (r'description = "a\"\\b"', Comparison(Field.DESCRIPTION, Operator.EQUAL, 'a"\\b')),
    ],
)
def test_what_is_understood(text: str, wanted: object) -> None:
    assert parse_filter(text) == wanted


@pytest.mark.parametrize(
    ("text", "place", "what"),
    [
        ("team = a", 1, "labels.KEY"),
        ("kind = lora AND", 16, "the end"),
        ("kind lora", 6, "one of"),
        ("kind = ", 8, "a value"),
        ("kind = AND", 8, "a value"),
        ("kind = both", 8, "lora"),
        ("kind < lora", 6, "= !="),
        ("(kind = lora", 1, "not closed"),
        ("kind = lora)", 12, "closes nothing"),
        ("description = 'a", 15, "not closed"),
        ("ordering_id.x = a", 1, "no field"),
        ("labels. = a", 8, "key"),
        ("labels = a", 8, "only by :"),
        ("revision_number = 1.5", 19, "whole number"),
        ("revision_number = 9223372036854775808", 19, "63 bits"),
        ("create_time > yesterday", 15, "not a time"),
        ("create_time : 2000-01-01", 13, "cannot be compared"),
        ("kind = lora, description = x", 12, "not understood"),
        ("kind = lora OR OR kind = xlora", 16, "no field"),
        ("a\0", 2, "NUL"),
        ("(" * (MAX_DEPTH + 2) + "kind=lora", MAX_DEPTH + 2, "deep"),
        ("NOT " * (MAX_DEPTH + 2) + "kind=lora", 4 * (MAX_DEPTH + 1) + 1, "deep"),
        ("kind=lora " * (MAX_COMPARISONS + 1), 10 * MAX_COMPARISONS + 1, "comparisons"),
        ("x" * (MAX_LENGTH + 1), MAX_LENGTH + 1, "limit"),
    ],
)
def test_a_fault_is_told_with_its_place(text: str, place: int, what: str) -> None:
    with pytest.raises(InvalidValue, match=rf"at character {place}$") as raised:
        parse_filter(text)
    assert what in raised.value.message
    assert raised.value.violations[0].field == "filter"


PARTS = ["kind", "=", "lora", "labels.", '"x"', "AND", "OR", "NOT", "-", "(", ")", ":", "create_time", "<", "'", "é"]


@given(st.lists(st.sampled_from(PARTS), max_size=12).map(" ".join) | st.text(max_size=30))
def test_any_text_is_read_or_refused(text: str) -> None:
    refused = None
    try:
        parse_filter(text)
    except InvalidValue as error:
        refused = error.message
    assert refused is None or "at character" in refused
