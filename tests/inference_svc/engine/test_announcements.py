"""Readers are woken together and, where there are many of them, every few steps."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from inference_svc.engine.announcements import MESSAGE_SECONDS, MOST_OF_A_STEP, MOST_STEPS_HELD_BACK, Announcements
from inference_svc.engine.output_stream import OutputStream


class Readers:
    """Streams, and how often each was announced."""

    def __init__(self, count: int) -> None:
        self.heard = [0] * count
        self.streams = [OutputStream(str(index), self._hears(index)) for index in range(count)]

    def _hears(self, index: int):  # type: ignore[no-untyped-def]
        def on_ready() -> None:
            self.heard[index] += 1

        return on_ready


def after_steps(count: int, steps: int, seconds: float) -> list[int]:
    """How often each of so many streams was announced, with a token each in every step."""
    readers, subject = Readers(count), Announcements()
    for _ in range(steps):
        for stream in readers.streams:
            subject.add(stream, can_wait=True)
        subject.after_step(seconds)
    return readers.heard


def test_one_stream_hears_of_every_token() -> None:
    assert after_steps(1, 30, 0.003) == [30]


def test_many_streams_hear_every_few_steps_and_of_all_together() -> None:
    assert after_steps(16, 30, 0.010) == [15] * 16
    assert after_steps(64, 30, 0.010) == [10] * 64


def test_slow_steps_are_heard_of_one_by_one() -> None:
    assert after_steps(64, 30, 0.500) == [30] * 64


def test_the_end_of_an_answer_never_waits_and_is_announced_once() -> None:
    readers, subject = Readers(40), Announcements()
    for stream in readers.streams:
        subject.add(stream, can_wait=True)
    subject.add(readers.streams[3], can_wait=False)
    subject.after_step(0.001)
    assert readers.heard == [0] * 3 + [1] + [0] * 36
    subject.announce_all()
    assert readers.heard == [1] * 40
    subject.announce_all()
    assert readers.heard == [1] * 40


@given(st.integers(1, 100), st.floats(1e-5, 1))
def test_messages_take_their_share_of_the_time_or_three_steps_pass(count: int, seconds: float) -> None:
    steps = 6 * MOST_STEPS_HELD_BACK
    heard = after_steps(count, steps, seconds)
    assert len(set(heard)) == 1
    share = sum(heard) * MESSAGE_SECONDS / (steps * seconds)
    held_back = steps // heard[0]
    assert share <= MOST_OF_A_STEP * (1 + 1e-9) or held_back == MOST_STEPS_HELD_BACK
    # No longer than it takes.
    assert held_back == 1 or count * MESSAGE_SECONDS / ((held_back - 1) * seconds) > MOST_OF_A_STEP * (1 - 1e-9)
