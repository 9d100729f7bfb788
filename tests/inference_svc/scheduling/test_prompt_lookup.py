"""Drafts from a sequence's own text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_svc.scheduling.prompt_lookup import FIRST_RATES, Draft, HitRates, PromptLookup


def drafted(token_ids: list[int], most: int = 3) -> list[int]:
    draft = PromptLookup().draft(token_ids, most, HitRates())
    return [] if draft is None else draft.token_ids


def test_what_followed_the_last_two_tokens_before_is_drafted() -> None:
    assert drafted([1, 2, 3, 4, 5, 9, 1, 2]) == [3, 4, 5]


def test_the_latest_of_several_places_counts() -> None:
    assert drafted([1, 2, 3, 3, 3, 1, 2, 4, 4, 4, 1, 2]) == [4, 4, 4]


def test_a_single_token_that_was_there_is_better_than_nothing() -> None:
    assert drafted([7, 8, 9, 5, 7], most=2) == [8, 9]


def test_a_pair_is_better_than_the_later_place_of_a_single_token() -> None:
    assert drafted([1, 2, 3, 9, 2, 4, 9, 1, 2], most=1) == [3]


def test_a_sequence_whose_end_is_new_has_no_draft() -> None:
    lookup = PromptLookup()
    assert [lookup.draft(list(range(n)), 3, HitRates()) for n in range(5)] == [None] * 5


def test_text_that_goes_in_a_circle_is_drafted_beyond_its_end() -> None:
    assert drafted([9, 4, 5, 6, 4, 5, 6, 4], most=7) == [5, 6, 4, 5, 6, 4, 5]
    assert drafted([3, 3, 3], most=4) == [3, 3, 3, 3]


@given(st.lists(st.integers(0, 4), min_size=2, max_size=40), st.integers(1, 6), st.data())
def test_a_draft_goes_on_as_its_longest_match_did_however_the_sequence_grew(
    token_ids: list[int], most: int, data: st.DataObject
) -> None:
    lookup, length = PromptLookup(), 0
    while length < len(token_ids):  # asked on the way, as steps do, or not
        length = data.draw(st.integers(length + 1, len(token_ids)))
        draft = lookup.draft(token_ids[:length], most, HitRates())
    sources = [at for at in range(2, len(token_ids)) if token_ids[at - 2 : at] == token_ids[-2:]]
    sources = sources or [at for at in range(1, len(token_ids)) if token_ids[at - 1] == token_ids[-1]]
    if not sources:
        assert draft is None
        return
    extended = list(token_ids)
    for place in range(most):
        extended.append(extended[sources[-1] + place])
    assert draft is not None
    assert draft.token_ids == extended[len(token_ids) :]
    match = draft.match_length
    assert token_ids[sources[-1] - match : sources[-1]] == token_ids[len(token_ids) - match :]


@pytest.mark.parametrize("match_length", [1, 2, 3, 4])
def test_a_draft_is_rated_by_the_length_of_its_match(match_length: int) -> None:
    match = list(range(10, 10 + match_length))
    draft = PromptLookup().draft([*match, 1, 2, 99, *match], 2, HitRates())
    assert draft == Draft([1, 2], match_length, FIRST_RATES[match_length])


def test_longer_matches_are_expected_to_be_better() -> None:
    assert sorted(FIRST_RATES.values()) == [FIRST_RATES[length] for length in (1, 2, 3, 4)]


def test_what_came_true_raises_what_is_expected_of_drafts_like_it_and_what_did_not_lowers_it() -> None:
    rates = HitRates(HitRates())
    for _ in range(30):
        rates.note(Draft([1, 2], 2, 0.5), 2, 2)
        rates.note(Draft([1, 2], 3, 0.5), 2, 0)
    assert rates.of(2) > 0.9
    assert rates.of(3) < 0.1
    assert (rates.of(1), rates.of(4)) == pytest.approx((FIRST_RATES[1], FIRST_RATES[4]))


def test_what_drafts_of_others_brought_is_expected_of_a_sequence_until_it_shows_otherwise() -> None:
    of_all = HitRates()
    other, own = HitRates(of_all), HitRates(of_all)
    for _ in range(100):
        other.note(Draft([1], 1, 0.3), 1, 0)
    assert own.of(1) == pytest.approx(of_all.of(1))
    assert own.of(1) < 0.1
    for _ in range(10):
        own.note(Draft([1], 1, 0.1), 1, 1)
    assert own.of(1) > 0.7
    assert of_all.of(1) < 0.2
