"""Choosing tokens."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from inference_svc.engine.ranking import largest
from inference_svc.engine.request import Sampling, Stopping
from inference_svc.engine.sampler import Penalties, SamplingState, choose, token_logprobs
from inference_svc.errors import InvalidRequest

LOGITS = np.array([2.0, 1.0, 0.5, -1.0, -3.0], dtype=np.float32)


def state(
    seed: int = 0, prompt: tuple[int, ...] = (), generated: tuple[int, ...] = (), **values: float
) -> SamplingState:
    subject = SamplingState(Sampling(**values), seed, prompt)  # type: ignore[arg-type]
    for token_id in generated:
        subject.note(token_id)
    return subject


def drawn(count: int = 2000, **values: float) -> Counter[int]:
    subject = state(**values)  # type: ignore[arg-type]
    return Counter(choose(LOGITS, subject, ()) for _ in range(count))


def test_temperature_zero_takes_the_most_probable_token() -> None:
    assert choose(LOGITS, state(temperature=0.0), ()) == 0


def test_draws_follow_the_probabilities() -> None:
    counts = drawn(4000)
    for token_id, probability in enumerate(torch.softmax(torch.from_numpy(LOGITS), -1).tolist()):
        assert abs(counts[token_id] / 4000 - probability) < 0.03


def test_top_k_draws_only_from_the_k_most_probable() -> None:
    assert set(drawn(top_k=2)) == {0, 1}


def test_top_p_keeps_the_token_that_crosses_the_bound() -> None:
    # Probabilities 0.60, 0.22, 0.13, ...: 0.7 is crossed by the second.
    assert set(drawn(top_p=0.7)) == {0, 1}


def test_min_p_drops_tokens_below_a_fraction_of_the_best() -> None:
    # exp(1 - 2) = 0.37 and exp(0.5 - 2) = 0.22 of the best.
    assert set(drawn(min_p=0.3)) == {0, 1}


def test_the_same_seed_draws_the_same_tokens() -> None:
    first, second = state(seed=7), state(seed=7)
    for _ in range(50):
        assert choose(LOGITS, first, ()) == choose(LOGITS, second, ())


def test_a_forbidden_token_is_never_chosen() -> None:
    assert choose(LOGITS, state(temperature=0.0), {0}) == 1


def test_repetition_penalty_divides_positive_and_multiplies_negative_logits() -> None:
    assert choose(LOGITS, state(prompt=(0,), temperature=0.0, repetition_penalty=2.5), ()) == 1
    below = np.array([-1.0, -1.5], dtype=np.float32)
    assert choose(below, state(prompt=(0,), temperature=0.0, repetition_penalty=2.0), ()) == 1


def test_presence_and_frequency_count_the_answer_but_not_the_prompt() -> None:
    assert choose(LOGITS, state(prompt=(0,), temperature=0.0, presence_penalty=1.5), ()) == 0
    assert choose(LOGITS, state(generated=(0,), temperature=0.0, presence_penalty=1.5), ()) == 1
    assert choose(LOGITS, state(generated=(0,), temperature=0.0, frequency_penalty=0.6), ()) == 0
    assert choose(LOGITS, state(generated=(0, 0), temperature=0.0, frequency_penalty=0.6), ()) == 1


def test_the_given_logits_are_never_changed() -> None:
    before = LOGITS.copy()
    choose(LOGITS, state(generated=(0,), presence_penalty=2.0, repetition_penalty=3.0), {1})
    assert np.array_equal(LOGITS, before)


def test_log_probabilities_are_those_of_the_raw_logits() -> None:
    token = token_logprobs(LOGITS, 1, 2)
    expected = torch.log_softmax(torch.from_numpy(LOGITS), -1)
    assert token.logprob == pytest.approx(float(expected[1]))
    assert [pair[0] for pair in token.top] == [0, 1]


@pytest.mark.parametrize(("name", "value"), [("top_p", 0.5), ("top_k", 5), ("min_p", 0.1)])
def test_greedy_choice_together_with_a_truncated_draw_is_refused(name: str, value: float) -> None:
    with pytest.raises(InvalidRequest, match=name):
        Sampling(temperature=0.0, **{name: value})  # type: ignore[arg-type]


def test_more_least_tokens_than_most_tokens_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="min_tokens 5 is more than max_tokens 4"):
        Stopping(max_tokens=4, min_tokens=5)


def by_full_sort(logits: NDArray[np.float32], sampling: Sampling, uniform: float) -> int:
    """The definition of a draw: transformers' order of cuts over the whole vocabulary, sorted, in torch."""
    ordered, token_ids = torch.sort(
        torch.from_numpy(logits).double() / sampling.temperature, descending=True, stable=True
    )
    probabilities = torch.softmax(ordered, dim=-1)
    keep = len(probabilities) if sampling.top_k is None else min(sampling.top_k, len(probabilities))
    probabilities = probabilities[:keep] / probabilities[:keep].sum()
    if sampling.top_p < 1.0:
        before = probabilities.cumsum(-1) - probabilities
        probabilities = probabilities[: max(1, int((before < sampling.top_p).sum()))]
    if sampling.min_p > 0.0:
        probabilities = probabilities[: max(1, int((probabilities >= sampling.min_p * probabilities[0]).sum()))]
    cumulative = probabilities.cumsum(-1)
    drawn = torch.searchsorted(cumulative, uniform * float(cumulative[-1]), right=True)
    return int(token_ids[min(int(drawn), len(probabilities) - 1)])


VOCAB_SIZES = st.sampled_from([1, 2, 63, 64, 65, 700, 2047, 2048, 5001])


@st.composite
def rows_of_logits(draw: st.DrawFn) -> NDArray[np.float32]:
    """Rows of every size and sharpness; coarse ones are full of equal logits."""
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    logits = generator.standard_normal(draw(VOCAB_SIZES)) * draw(st.sampled_from([0.01, 1.0, 5.0, 30.0]))
    if draw(st.booleans()):
        logits = np.round(logits)
    return logits.astype(np.float32)


@settings(max_examples=100, deadline=None)
@given(rows_of_logits(), st.integers(1, 6_000) | st.integers(1, 100))
def test_the_largest_are_the_first_of_a_stable_sort(logits: NDArray[np.float32], count: int) -> None:
    expected = torch.sort(torch.from_numpy(logits), descending=True, stable=True).indices[:count]
    assert largest(logits, count).tolist() == expected.tolist()


# Odd numbers: where a bound falls exactly on a sum, the rounding of the sum decides, in any implementation.
@settings(max_examples=150, deadline=None)
@given(
    rows_of_logits(),
    st.floats(0.05, 10),
    st.none() | st.integers(1, 100) | st.integers(1, 6_000),
    st.just(1.0) | st.floats(0.01, 0.999).map(lambda p: p * 0.999_713),
    st.just(0.0) | st.floats(0.001, 1).map(lambda p: p * 0.999_713),
    st.integers(0, 2**63 - 1),
)
def test_a_draw_is_that_of_the_whole_vocabulary_sorted(
    logits: NDArray[np.float32], temperature: float, top_k: int | None, top_p: float, min_p: float, seed: int
) -> None:
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    subject, expected = SamplingState(sampling, seed, ()), random.Random(seed)
    for _ in range(4):  # later draws begin with what earlier ones took
        assert choose(logits, subject, ()) == by_full_sort(logits, sampling, expected.random())


@given(
    st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=40),
    st.floats(1e-308, 100),
    st.integers(1, 50),
    st.floats(0, 1, exclude_min=True),
    st.floats(0, 1),
)
def test_every_combination_draws_a_valid_token(
    logits: list[float], temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    subject = state(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    assert 0 <= choose(np.array(logits, dtype=np.float32), subject, ()) < len(logits)


@pytest.mark.parametrize("values", [{}, {"top_p": 0.9}, {"min_p": 0.1}, {"top_k": 7}, {"temperature": 0.0}])
def test_logits_that_are_no_numbers_still_give_a_token(values: dict[str, float]) -> None:
    broken = np.full(3000, np.nan, dtype=np.float32)
    assert 0 <= choose(broken, state(**values), ()) < 3000  # type: ignore[arg-type]


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.integers(0, 299), max_size=100),
    st.lists(st.integers(0, 299), max_size=300),
    st.floats(0.5, 2),
    st.floats(-2, 2),
    st.floats(-2, 2),
)
def test_penalties_are_those_of_counting_afresh(
    prompt: list[int], generated: list[int], repetition: float, presence: float, frequency: float
) -> None:
    logits = np.random.default_rng(3).standard_normal(300).astype(np.float32)
    subject = Penalties(Sampling(1.0, 1.0, None, 0.0, repetition, presence, frequency), prompt)
    for token_id in generated:
        subject.note(token_id)
    changed = logits.copy()
    subject.apply(changed)
    for token_id in {*prompt, *generated}:
        value = float(logits[token_id])
        expected = value / repetition if value > 0 else value * repetition
        if how_often := generated.count(token_id):
            expected -= presence + frequency * how_often
        assert changed[token_id] == pytest.approx(expected, rel=1e-4, abs=1e-4)
    untouched = sorted(set(range(300)) - set(prompt) - set(generated))
    assert np.array_equal(changed[untouched], logits[untouched])
