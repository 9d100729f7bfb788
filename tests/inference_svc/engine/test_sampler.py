"""Choosing tokens."""

from __future__ import annotations

import random
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from inference_svc.engine.request import Sampling, Stopping
from inference_svc.engine.sampler import SamplingState, choose, token_logprobs
from inference_svc.errors import InvalidRequest

LOGITS = torch.tensor([2.0, 1.0, 0.5, -1.0, -3.0])


def state(
    seed: int = 0, prompt: tuple[int, ...] = (), generated: tuple[int, ...] = (), **values: float
) -> SamplingState:
    sampling = Sampling(**values)  # type: ignore[arg-type]
    return SamplingState(sampling, random.Random(seed), frozenset(prompt), Counter(generated))


def drawn(count: int = 2000, **values: float) -> Counter[int]:
    subject = state(**values)  # type: ignore[arg-type]
    return Counter(choose(LOGITS, subject, frozenset()) for _ in range(count))


def test_temperature_zero_takes_the_most_probable_token() -> None:
    assert choose(LOGITS, state(temperature=0.0), frozenset()) == 0


def test_draws_follow_the_probabilities() -> None:
    counts = drawn(4000)
    for token_id, probability in enumerate(torch.softmax(LOGITS, -1).tolist()):
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
        assert choose(LOGITS, first, frozenset()) == choose(LOGITS, second, frozenset())


def test_a_forbidden_token_is_never_chosen() -> None:
    assert choose(LOGITS, state(temperature=0.0), frozenset({0})) == 1


def test_repetition_penalty_divides_positive_and_multiplies_negative_logits() -> None:
    assert choose(LOGITS, state(prompt=(0,), temperature=0.0, repetition_penalty=2.5), frozenset()) == 1
    below = torch.tensor([-1.0, -1.5])
    assert choose(below, state(prompt=(0,), temperature=0.0, repetition_penalty=2.0), frozenset()) == 1


def test_presence_and_frequency_count_the_answer_but_not_the_prompt() -> None:
    assert choose(LOGITS, state(prompt=(0,), temperature=0.0, presence_penalty=1.5), frozenset()) == 0
    assert choose(LOGITS, state(generated=(0,), temperature=0.0, presence_penalty=1.5), frozenset()) == 1
    assert choose(LOGITS, state(generated=(0,), temperature=0.0, frequency_penalty=0.6), frozenset()) == 0
    assert choose(LOGITS, state(generated=(0, 0), temperature=0.0, frequency_penalty=0.6), frozenset()) == 1


def test_the_given_logits_are_never_changed() -> None:
    before = LOGITS.clone()
    choose(LOGITS, state(generated=(0,), presence_penalty=2.0, repetition_penalty=3.0), frozenset({1}))
    assert torch.equal(LOGITS, before)


def test_log_probabilities_are_those_of_the_raw_logits() -> None:
    token = token_logprobs(LOGITS, 1, 2)
    expected = torch.log_softmax(LOGITS, -1)
    assert token.logprob == pytest.approx(float(expected[1]))
    assert [pair[0] for pair in token.top] == [0, 1]


@pytest.mark.parametrize(("name", "value"), [("top_p", 0.5), ("top_k", 5), ("min_p", 0.1)])
def test_greedy_choice_together_with_a_truncated_draw_is_refused(name: str, value: float) -> None:
    with pytest.raises(InvalidRequest, match=name):
        Sampling(temperature=0.0, **{name: value})  # type: ignore[arg-type]


def test_more_least_tokens_than_most_tokens_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="min_tokens 5 is more than max_tokens 4"):
        Stopping(max_tokens=4, min_tokens=5)


@given(
    st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=40),
    st.floats(0.01, 10),
    st.integers(1, 50),
    st.floats(0.01, 1),
    st.floats(0, 1),
)
def test_every_combination_draws_a_valid_token(
    logits: list[float], temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    subject = state(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    assert 0 <= choose(torch.tensor(logits), subject, frozenset()) < len(logits)
