"""Frozen X-LoRA scalings: when an answer has them, and what they are."""

from __future__ import annotations

from torch import Tensor

from inference_svc.scheduling.granularity import FrozenAfter, FrozenWhenSettled, Granularity


class ScalingsFreezer:
    """Watches the scalings of one answer; positions that a preemption makes it see twice change nothing."""

    def __init__(self, granularity: Granularity, num_prompt_tokens: int) -> None:
        self.frozen: Tensor | None = None  # [1, num_layers, num_experts]
        self._granularity = granularity
        self._never_freezes = not isinstance(granularity, FrozenAfter | FrozenWhenSettled)
        self._last_prompt = num_prompt_tokens - 1
        self._next_position = self._last_prompt  # the first that has not been seen
        self._last: Tensor | None = None  # the scalings before it; kept only where they are compared
        self._num_settled = 0

    def freezes(self, first_position: int, scalings: Tensor) -> bool:
        """Take the scalings [num_tokens, num_layers, num_experts] of rows; True if the last of them hold from here."""
        if self._never_freezes or self.frozen is not None:
            return False
        end = first_position + len(scalings)
        for position in range(max(first_position, self._next_position), end):
            self._next_position = position + 1
            if self._is_last(position, scalings[position - first_position]):
                assert position + 1 == end, "a position after a frozen one was computed with scalings of its own"
                self.frozen = scalings[-1:].clone()
        return self.frozen is not None

    def _is_last(self, position: int, scalings: Tensor) -> bool:
        decode_pass = position - self._last_prompt
        if isinstance(self._granularity, FrozenAfter):
            return decode_pass == self._granularity.passes
        assert isinstance(self._granularity, FrozenWhenSettled)
        is_settled = self._last is not None and bool((scalings - self._last).abs().max() <= self._granularity.epsilon)
        self._last = scalings.clone()
        self._num_settled = self._num_settled + 1 if is_settled else 0
        return self._num_settled == self._granularity.passes
