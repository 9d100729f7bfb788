"""When readers are woken: every few steps, where a message for every token would take too much of the machine."""

from __future__ import annotations

import math

from inference_svc.engine.output_stream import OutputStream

# What a message takes of the machine's time on its way to a client on the same machine: 80 to 150 microseconds were
# measured, for packing, sending, receiving and unpacking it.
MESSAGE_SECONDS = 120e-6
# Messages may take so much of the time of a step. More goes off the computation: it has every core to itself otherwise.
MOST_OF_A_STEP = 0.1
MOST_STEPS_HELD_BACK = 3


class Announcements:
    """The streams with something new to read. Only those wait whose answers go on for sure."""

    def __init__(self) -> None:
        self._at_once: list[OutputStream] = []
        self._held_back: dict[OutputStream, None] = {}
        self._num_steps = 0  # since all were announced

    def add(self, stream: OutputStream, *, can_wait: bool) -> None:
        """A stream has something new to read, which can wait for what the next steps add to it, or not."""
        if can_wait:
            self._held_back[stream] = None
        else:
            self._held_back.pop(stream, None)  # what is announced now includes what was held back
            self._at_once.append(stream)

    def after_step(self, seconds: float) -> None:
        """A step took so long; all streams are woken together, when it is over: one that woke up amid it held it up."""
        self._num_steps += 1
        wanted = len(self._held_back) * MESSAGE_SECONDS / (MOST_OF_A_STEP * seconds)
        if self._num_steps >= min(math.ceil(wanted), MOST_STEPS_HELD_BACK):
            self.announce_all()
            return
        for stream in self._at_once:
            stream.announce()
        self._at_once.clear()

    def announce_all(self) -> None:
        """Wake all readers: nothing is added to their streams for a while."""
        for stream in (*self._at_once, *self._held_back):
            stream.announce()
        self._at_once.clear()
        self._held_back.clear()
        self._num_steps = 0
