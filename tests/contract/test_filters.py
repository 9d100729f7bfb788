"""Filters and orders of lists: SQL means what Python means."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ordering_svc.domain.filter_parser import parse_filter
from ordering_svc.domain.filtering import (
    Comparison,
    Conjunction,
    Disjunction,
    Field,
    Filter,
    Negation,
    Operator,
    passes,
)
from ordering_svc.domain.ordering import AdapterKind, Ordering, OrderingMetadata, Provenance
from ordering_svc.domain.sorting import SortField, SortOrder
from ordering_svc.persistence.store import ListQuery, NewFile, OrderingStore

MANY = 10**9
TEXTS = ("", "a", "A", "ab", "ä", "a%_b", "'\"\\", "z\U0001f600", "\uffff", "true", "1")
KEYS = ("team", 'odd "key"', "$.a", "Team")
ORDERINGS = [
    ("a", OrderingMetadata(AdapterKind.LORA, "ä", "z\U0001f600", {"team": "a", "Team": "A"}), "org/a"),
    ("a-b", OrderingMetadata(AdapterKind.XLORA, "ab", "\uffff", {'odd "key"': "'\"\\", "team": ""}), "org/A"),
    ("a1", OrderingMetadata(description="a%_b", labels={"$.a": "ab", "team": "z\U0001f600"}), ""),
    ("b", OrderingMetadata(AdapterKind.LORA, "A", "'\"\\", {}), "true"),
]


@pytest.fixture
def filled(store: OrderingStore) -> OrderingStore:
    """With a few orderings that are easy to mix up, one of them with two revisions."""
    for ordering_id, metadata, base_model_id in ORDERINGS:
        store.create(ordering_id, metadata, NewFile(b"1", Provenance("written"), base_model_id))
    first = store.get("a")
    store.update("a", first.etag, first.metadata, NewFile(b"2", Provenance("written"), "org/a2"))
    return store


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("", ["a", "a-b", "a1", "b"]),
        ("kind = lora", ["a", "b"]),
        ("kind != lora", ["a-b", "a1"]),
        ('labels.team = "a"', ["a"]),
        ('labels.team != "a"', ["a-b", "a1"]),
        ('NOT labels.team = "a"', ["a-b", "a1", "b"]),
        ("labels:team", ["a", "a-b", "a1"]),
        ("-labels:team", ["b"]),
        ('labels."odd \\"key\\"":"\\\\"', ["a-b"]),
        ('labels."$.a" = ab', ["a1"]),
        ("labels.Team:A", ["a"]),
        ("labels.team:''", ["a", "a-b", "a1"]),
        ("description:%_", ["a1"]),
        ("description:A", []),
        ("base_model_id = org/a2", ["a"]),
        ("base_model_id = org/a", []),
        ("revision_number > 1", ["a"]),
        ("ordering_id >= a1 ordering_id < b", ["a1"]),
        ("kind = xlora OR kind = lora AND ordering_id:a", ["a", "a-b"]),
        ("kind = xlora OR (kind = lora AND ordering_id:b)", ["a-b", "b"]),
        ("create_time > 2000-01-01 AND update_time < 2000-01-01", []),
    ],
)
def test_a_filter_finds_what_it_says(filled: OrderingStore, text: str, ids: list[str]) -> None:
    page = filled.list_orderings(ListQuery(parse_filter(text)), 10, MANY)
    assert [ordering.ordering_id for ordering in page.orderings] == ids


OPERATORS = st.sampled_from(list(Operator))
WORDS = st.sampled_from(TEXTS) | st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=3)
COMPARISONS: st.SearchStrategy[Filter] = st.one_of(
    st.builds(
        Comparison,
        st.sampled_from([Field.ORDERING_ID, Field.DESCRIPTION, Field.ADAPTER_MODEL_ID, Field.BASE_MODEL_ID]),
        OPERATORS,
        WORDS,
    ),
    st.builds(Comparison, st.just(Field.LABEL), OPERATORS, WORDS, st.sampled_from(KEYS)),
    st.builds(Comparison, st.just(Field.LABEL), st.just(Operator.HAS), st.sampled_from(KEYS)),
    st.builds(
        Comparison,
        st.just(Field.REVISION_NUMBER),
        st.sampled_from(list(Operator)[:6]),
        st.sampled_from([0, 1, 2, -(2**63) + 1, 2**63 - 1]),
    ),
)
FILTERS = st.recursive(
    COMPARISONS,
    lambda part: st.one_of(
        st.builds(Negation, part),
        st.builds(Conjunction, st.lists(part, min_size=1, max_size=3).map(tuple)),
        st.builds(Disjunction, st.lists(part, min_size=1, max_size=3).map(tuple)),
    ),
    max_leaves=6,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(FILTERS)
def test_a_database_filters_as_python_does(filled: OrderingStore, wanted: Filter) -> None:
    everything = filled.list_orderings(ListQuery(), 10, MANY).orderings
    found = filled.list_orderings(ListQuery(wanted), 10, MANY).orderings
    assert found == [ordering for ordering in everything if passes(ordering, wanted)]


@pytest.mark.parametrize("is_descending", [False, True])
@pytest.mark.parametrize("field", SortField)
def test_pages_in_every_order_miss_nothing(filled: OrderingStore, field: SortField, is_descending: bool) -> None:
    order = SortOrder(field, is_descending)
    everything = filled.list_orderings(ListQuery(order=order), 10, MANY).orderings
    assert len(everything) == len(ORDERINGS)
    assert list(everything) == sorted(everything, key=order.key_of, reverse=is_descending)
    paged: list[Ordering] = []
    after = None
    for _ in ORDERINGS:
        page = filled.list_orderings(ListQuery(order=order, after=after), 1, MANY)
        paged += page.orderings
        after = order.key_of(page.orderings[-1])
        assert page.has_more == (len(paged) < len(ORDERINGS))
    assert paged == list(everything)


def test_tags_are_listed_with_their_revisions(filled: OrderingStore) -> None:
    filled.tag("a", None, "new", None)
    filled.tag("a", None, "old", None)
    filled.tag("b", None, "prod", None)
    listed = filled.list_orderings(ListQuery(), 10, MANY).orderings
    assert [ordering.tags for ordering in listed] == [("new", "old"), (), (), ("prod",)]
    assert [o.tags for o in filled.list_revisions("a", None, 10, MANY).orderings] == [("new", "old"), ()]
