"""Streams and short prompts never wait long, whatever a machine's steps cost: the scheduler on a simulated clock."""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference_svc.kv_cache.blocks import BlockPool
from inference_svc.scheduling.chunks import share_between_prompts
from inference_svc.scheduling.pace import (
    LONGEST_LAST_STEP,
    LONGEST_STEP,
    MOST_PATIENT_STEP,
    UNNOTICED_SECONDS,
    StepPace,
)
from inference_svc.scheduling.scheduler import Scheduler
from inference_svc.scheduling.sequence import Sequence


def sequence(name: str, prompt: int, new: int) -> Sequence:
    return Sequence(name, [0] * prompt, prompt, prompt + new, needs_scaling_pass=False)


@dataclass(frozen=True)
class Machine:
    """What a step costs, in milliseconds: always, for each decoding sequence, for each prompt token.

    Of busy ones, every step takes up to `noise` times as long again.
    """

    step: float
    sequence: float
    prompt_token: float
    noise: float = 0.0

    def decoding(self, num_sequences: int) -> float:
        return self.step + num_sequences * self.sequence


class Simulation:
    """Runs a scheduler on a machine; knows when each sequence got its tokens."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.scheduler = Scheduler(BlockPool(4000, 16), max_running=64, max_batch_tokens=512)
        self.now = 0.0
        self._chance = random.Random(1)
        self.times: dict[str, list[float]] = {}

    def add(self, name: str, prompt: int, new: int) -> None:
        self.times[name] = []
        self.scheduler.add(sequence(name, prompt, new))

    def step(self) -> None:
        scheduled = self.scheduler.schedule()
        num_decoding = sum(item.sequence.is_decoding for item in scheduled)
        num_prompt_tokens = sum(item.num_tokens for item in scheduled) - num_decoding
        seconds = self.machine.decoding(num_decoding) + num_prompt_tokens * self.machine.prompt_token
        seconds *= 1 + self._chance.random() * self.machine.noise
        self.now += seconds
        self.scheduler.pace.note(num_decoding, num_prompt_tokens, seconds)
        for item in scheduled:
            ends = item.reaches_end
            self.scheduler.advance(item)
            if not ends:
                continue
            item.sequence.token_ids.append(0)
            self.times[item.sequence.request_id].append(self.now)
            if len(item.sequence.token_ids) >= item.sequence.max_total_tokens:
                self.scheduler.remove(item.sequence)

    def decoding_streams(self, count: int) -> None:
        """So many streams, past their first tokens."""
        for index in range(count):
            self.add(f"stream {index}", 20, 4000)
        while min(len(times) for times in self.times.values()) < 30:
            self.step()

    def longest_gap(self, since: float) -> float:
        """Between two tokens of the streams, the later of which came after a moment."""
        return max(
            later - earlier
            for name, times in self.times.items()
            if name.startswith("stream")
            for earlier, later in itertools.pairwise(times)
            if later > since
        )


# A prompt token costs between a hundredth and all of what a step of one stream does.
MACHINES = st.builds(Machine, st.floats(0.5, 50), st.floats(0, 5), st.floats(0.01, 1), st.floats(0, 0.3)).map(
    lambda machine: replace(machine, prompt_token=machine.prompt_token * machine.decoding(1))
)


@settings(max_examples=100, deadline=None)
@given(MACHINES, st.integers(1, 31), st.integers(1, 4), st.integers(1, 100))
def test_no_stream_waits_longer_than_five_steps_while_long_prompts_arrive(
    machine: Machine, num_streams: int, num_prompts: int, first_prompt: int
) -> None:
    run = Simulation(machine)
    run.decoding_streams(num_streams)
    run.add("short", first_prompt, 1)  # all that is known of prompts when the long ones come
    while not run.times["short"]:
        run.step()
    began = run.now
    for index in range(num_prompts):
        run.add(f"long {index}", 2000, 2)
    for _ in range(60):
        run.step()
    assert run.longest_gap(began) <= 5 * machine.decoding(num_streams + num_prompts) * (1 + machine.noise)


@settings(max_examples=50, deadline=None)
@given(MACHINES, st.integers(1, 12))
def test_a_short_prompt_has_its_first_token_within_three_steps_beside_fifteen_streams(
    machine: Machine, prompt: int
) -> None:
    run = Simulation(machine)
    run.decoding_streams(15)
    run.add("teacher", 64, 1)
    while not run.times["teacher"]:
        run.step()
    short = min(prompt, max(1, int(machine.decoding(15) / machine.prompt_token)))
    began = run.now  # it came when a step had just begun
    run.step()
    run.add("short", short, 2)
    while not run.times["short"]:
        run.step()
    rounding = 1e-9 * run.now  # of a clock that is a long sum: some machines take the three steps exactly
    assert run.times["short"][0] - began <= 3 * machine.decoding(16) * (1 + machine.noise) + rounding


def test_prompts_that_come_at_once_are_computed_hardly_slower_than_one_after_the_other() -> None:
    machine = Machine(7.0, 1.1, 0.5)
    run = Simulation(machine)
    for index in range(16):
        run.add(f"stream {index}", 143, 64)
        if index == 0:
            run.step()
    while run.scheduler.has_work:
        run.step()
    alone = 16 * 143 * machine.prompt_token + 63 * machine.decoding(16)
    assert run.now <= 1.15 * alone


def test_a_prompt_alone_takes_whole_steps() -> None:
    run = Simulation(Machine(1.0, 0.1, 1.0))
    run.add("long", 2000, 2)
    for _ in range(4):
        run.step()
    assert len(run.times["long"]) == 1


def test_a_short_prompt_overtakes_a_long_one_and_the_long_one_goes_on() -> None:
    run = Simulation(Machine(3.0, 0.5, 0.3))
    run.add("long", 3000, 2)
    run.step()
    for index in range(200):
        run.add(f"short {index}", 40, 1)
    while not run.times["long"]:
        run.step()
    assert run.times["short 0"][0] < run.times["long"][0]
    # Half of every step was its own: 2,488 tokens in ten steps of 256.
    assert run.now <= 3.5 * 11 + 512 * 11 * 0.3


def test_prompts_share_a_step_by_age_and_length() -> None:
    prompts = [sequence("old", 100, 1), sequence("long", 90, 1), sequence("short", 10, 1), sequence("middle", 20, 1)]

    def shares(budget: int) -> dict[str, int]:
        return {item.sequence.request_id: item.num_tokens for item in share_between_prompts(prompts, budget)}

    assert shares(40) == {"old": 20, "short": 10, "middle": 10}
    assert shares(100) == {"old": 50, "short": 10, "middle": 20, "long": 20}
    assert shares(1) == {"old": 1}
    assert shares(0) == {}
    assert shares(500) == {"old": 100, "short": 10, "middle": 20, "long": 90}


@given(st.lists(st.integers(1, 50), min_size=1, max_size=10), st.integers(1, 200))
def test_no_part_of_a_step_is_wasted_and_the_oldest_has_half(lengths: list[int], budget: int) -> None:
    prompts = [sequence(str(index), length, 1) for index, length in enumerate(lengths)]
    chunks = share_between_prompts(prompts, budget)
    assert sum(chunk.num_tokens for chunk in chunks) == min(budget, sum(lengths))
    assert all(1 <= chunk.num_tokens <= chunk.sequence.num_pending for chunk in chunks)
    assert chunks[0].sequence is prompts[0]
    assert chunks[0].num_tokens >= min(lengths[0], budget // 2)
    assert len({chunk.sequence.request_id for chunk in chunks}) == len(chunks)


def test_a_pace_that_has_measured_nothing_lets_some_tokens_in() -> None:
    assert StepPace().max_prompt_tokens(2, 1) == 64


def test_the_pace_follows_what_steps_cost() -> None:
    pace = StepPace()
    for _ in range(50):
        pace.note(16, 0, 0.020)
        pace.note(16, 100, 0.020 + 100 * 0.0006)
    assert pace.max_prompt_tokens(15, 1) == pytest.approx(37, abs=1)
    for _ in range(50):  # prompts became dearer
        pace.note(16, 100, 0.020 + 100 * 0.006)
    assert pace.max_prompt_tokens(15, 1) == pytest.approx(4, abs=1)
    for _ in range(50):  # and cheaper than can be measured
        pace.note(16, 100, 0.020)
    assert pace.max_prompt_tokens(15, 1) == 200  # twice what was measured


def test_where_decoding_is_quick_a_step_with_prompts_may_take_what_nobody_notices() -> None:
    pace = StepPace()
    for _ in range(50):
        pace.note(2, 0, 0.003)
        pace.note(1, 100, 0.003 + 100 * 0.0005)
    assert pace.max_prompt_tokens(1, 1) == pytest.approx((UNNOTICED_SECONDS - 0.003) / 0.0005, abs=1)


def test_where_prompts_outnumber_the_streams_that_decode_a_step_may_take_longer_in_proportion() -> None:
    pace = StepPace()
    for _ in range(50):
        pace.note(16, 0, 0.020)
        pace.note(16, 400, 0.020 + 400 * 0.0005)

    def tokens_in(steps: float) -> float:
        return (steps - 1) * 0.020 / 0.0005

    assert pace.max_prompt_tokens(15, 1) == pytest.approx(tokens_in(LONGEST_STEP * 16 / 15), abs=1)
    assert pace.max_prompt_tokens(8, 8) == pytest.approx(tokens_in(MOST_PATIENT_STEP), abs=1)
    assert pace.max_prompt_tokens(12, 4) == pytest.approx(tokens_in(LONGEST_STEP * 16 / 12), abs=1)
    assert pace.max_prompt_tokens(1, 15) == pytest.approx(tokens_in(MOST_PATIENT_STEP), abs=1)


def test_a_step_that_ends_the_prompts_may_take_a_little_longer() -> None:
    pace = StepPace()
    for _ in range(50):
        pace.note(16, 0, 0.020)
        pace.note(16, 100, 0.020 + 100 * 0.0005)
    most, last = ((steps * 16 / 15 - 1) * 0.020 / 0.0005 for steps in (LONGEST_STEP, LONGEST_LAST_STEP))
    assert pace.max_prompt_tokens(15, 1, num_left=int(last) - 1) == pytest.approx(last, abs=1)
    assert pace.max_prompt_tokens(15, 1, num_left=int(last) + 2) == pytest.approx(most, abs=1)


def test_a_number_of_streams_that_was_not_seen_is_reckoned_from_the_nearest() -> None:
    pace = StepPace()
    pace.note(1, 0, 0.021)
    pace.note(0, 200, 200 * 0.0012)
    assert pace.max_prompt_tokens(1, 1) == pytest.approx(55, abs=1)
    assert pace.max_prompt_tokens(15, 1) == pytest.approx(34, abs=1)


def test_one_step_that_was_held_up_is_soon_forgotten() -> None:
    pace = StepPace()
    for _ in range(50):
        pace.note(16, 0, 0.020)
        pace.note(16, 100, 0.080)
    pace.note(16, 0, 1.0)
    assert pace.max_prompt_tokens(15, 1) <= 42
    pace.note(16, 100, 5.0)
    assert pace.max_prompt_tokens(15, 1) >= 18
    for _ in range(30):
        pace.note(16, 0, 0.020)
        pace.note(16, pace.max_prompt_tokens(15, 1), 0.020 + 0.0006 * pace.max_prompt_tokens(15, 1))
    assert pace.max_prompt_tokens(15, 1) == pytest.approx(37, abs=3)


def test_prompts_whose_tokens_become_dearer_as_they_go_on_stay_within_five_steps() -> None:
    pace = StepPace()
    for _ in range(20):
        pace.note(15, 0, 0.020)
    position = 0
    while position < 4000:
        tokens = pace.max_prompt_tokens(15, 1)
        seconds = 0.020 + tokens * (0.0004 + 0.0008 * position / 2000)
        assert seconds <= 5 * 0.020
        pace.note(15, tokens, seconds)
        position += tokens
