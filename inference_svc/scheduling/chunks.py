"""How many tokens of a sequence run in a step, and how prompts share what a step has for them. Pure Python."""

from __future__ import annotations

from collections.abc import Sequence as Seq

from inference_svc.scheduling.sequence import ScheduledSequence, Sequence


def next_tokens(sequence: Sequence, room: int) -> ScheduledSequence:
    """As many tokens of a sequence as neither pass needs more than `room` rows for; `room` is at least 1."""
    num_tokens = min(_most_tokens(sequence), room)
    while sequence.num_scaling_rows(num_tokens) > room:
        num_tokens -= 1
    return ScheduledSequence(sequence, num_tokens, sequence.num_scaling_rows(num_tokens) if num_tokens else room)


def share_between_prompts(prompts: Seq[Sequence], budget: int) -> list[ScheduledSequence]:
    """Chunks of prompts, given in order of arrival, of at most `budget` rows together.

    Half goes to the prompt that came first, so that none waits for ever; the other half, and what the first leaves, to
    those with the least to do: a short prompt does not wait for the end of a long one.
    """
    if not prompts or budget < 1:
        return []
    first, *others = prompts
    left = budget - min(wanted_rows(first), (budget + 1) // 2)
    chunks = []
    for sequence in sorted(others, key=wanted_rows):
        if left == 0:
            break
        chunks.append(next_tokens(sequence, left))
        left -= chunks[-1].num_rows
    taken = sum(chunk.num_rows for chunk in chunks)
    return [next_tokens(first, budget - taken), *chunks]


def _most_tokens(sequence: Sequence) -> int:
    # Computed anew: no step has rows on both sides of the position at which the scaling pass ended, nor, where prompts
    # are separated, of the prompt's end.
    most, num_computed = sequence.num_pending, sequence.num_computed
    for end in (sequence.frozen_from, sequence.num_prompt_tokens if sequence.separates_prompts else None):
        if end is not None and end > num_computed:
            most = min(most, end - num_computed)
    return most


def wanted_rows(sequence: Sequence) -> int:
    """Rows of what is left of a prompt, in the pass that needs more of them."""
    num_tokens = _most_tokens(sequence)
    return max(num_tokens, sequence.num_scaling_rows(num_tokens))
