"""How many drafted tokens are checked: what they are expected to bring against what rows cost."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from inference_svc.scheduling.pace import StepPace
from inference_svc.scheduling.prompt_lookup import Draft
from inference_svc.scheduling.speculation import STEPS_BETWEEN_TRIALS, Speculation


def speculation(cost: Callable[[int], float], most: int = 3) -> Speculation:
    """On a machine whose steps take so many seconds for so many rows, and that knows it."""
    pace = StepPace()
    for num_rows in range(1, 65):
        pace.note(num_rows, 0, cost(num_rows))
    return Speculation(pace, most)


def drafts(*rates: float) -> list[Draft]:
    return [Draft([1, 2, 3], 2, rate) for rate in rates]


def test_rows_that_cost_nothing_are_all_checked() -> None:
    assert speculation(lambda _: 1.0).choose(drafts(0.1, 0.9), 2, 100) == [3, 3]


def test_rows_that_cost_as_much_as_a_step_of_their_own_are_not() -> None:
    assert speculation(lambda rows: float(rows)).choose(drafts(0.9, 0.9), 2, 100) == [0, 0]


def test_the_better_draft_gets_the_rows() -> None:
    # Two rows more cost nothing, those after them as much as all before.
    chosen = speculation(lambda rows: 1.0 if rows <= 4 else 10.0).choose(drafts(0.2, 0.9), 2, 100)
    assert chosen == [0, 2]


def test_no_more_are_checked_than_there_is_room_for() -> None:
    assert speculation(lambda _: 1.0).choose(drafts(0.9, 0.8), 2, 3) == [2, 1]
    assert speculation(lambda _: 1.0).choose(drafts(0.9, 0.8), 2, 0) == [0, 0]
    assert speculation(lambda _: 1.0).choose(drafts(0.9), 2, -1) == [0]


def test_until_a_step_was_measured_nothing_is_checked() -> None:
    assert Speculation(StepPace(), 3).choose(drafts(0.99), 1, 100) == [0]


def test_what_once_cost_too_much_is_tried_again_now_and_then() -> None:
    subject = speculation(lambda rows: float(rows**2))
    chosen = [subject.choose(drafts(0.5), 1, 100)[0] for _ in range(4 * STEPS_BETWEEN_TRIALS)]
    assert sum(map(bool, chosen)) == 4
    assert {count for count in chosen if count} == {1, 2, 3}


@given(
    st.lists(st.floats(0.05, 0.95), min_size=1, max_size=6),
    st.lists(st.floats(0.0, 1.0), min_size=64, max_size=64),
)
def test_no_other_number_of_tokens_is_expected_to_bring_more_a_second(rates: list[float], steps: list[float]) -> None:
    seconds = [1.0 + sum(steps[: count + 1]) for count in range(64)]
    chosen = speculation(lambda rows: seconds[rows - 1]).choose(drafts(*rates), len(rates), 8 - len(rates))

    def tokens_a_second(counts: list[int]) -> float:
        expected = len(rates) + sum(
            rate ** (place + 1) for rate, count in zip(rates, counts, strict=True) for place in range(count)
        )
        return expected / seconds[len(rates) + sum(counts) - 1]

    best = tokens_a_second(chosen)
    for index in range(len(rates)):
        for other in range(4):
            counts = [*chosen[:index], other, *chosen[index + 1 :]]
            if sum(counts) <= 8 - len(rates):
                assert tokens_a_second(counts) <= best * (1 + 1e-9)


def test_most_tokens_of_a_draft_is_a_limit() -> None:
    subject = speculation(lambda _: 1.0, most=2)
    assert {tuple(subject.choose(drafts(0.9), 1, 100)) for _ in range(5)} == {(2,)}


def test_nothing_is_tried_beside_prompts() -> None:
    subject = speculation(lambda rows: float(rows**2))
    chosen = [subject.choose(drafts(0.5), 1, 100, has_prompts=True) for _ in range(4 * STEPS_BETWEEN_TRIALS)]
    assert chosen == [[0]] * len(chosen)
