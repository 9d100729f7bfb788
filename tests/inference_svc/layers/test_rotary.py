"""Rotary tables: no longer than sequences can be, and the same rows whatever that is."""

from __future__ import annotations

import pytest
import torch

from inference_svc.layers.rotary import LinearScaling, LongRope, RopeConfig, RotaryTable

CPU = torch.device("cpu")
LONG_ROPE = RopeConfig(4, scaling=LongRope((1.0, 1.5), (2.0, 8.0), original_length=10, attention_factor=1.2))


@pytest.mark.parametrize("rope", [RopeConfig(4), RopeConfig(4, scaling=LinearScaling(3.0)), LONG_ROPE])
@pytest.mark.parametrize("longest", [1, 9, 10, 11, 30])
def test_a_shorter_table_has_the_rows_of_a_longer_one(rope: RopeConfig, longest: int) -> None:
    short, long = RotaryTable(rope, longest, device=CPU), RotaryTable(rope, 64, device=CPU)
    offset = 10 if rope is LONG_ROPE and longest > 10 else 0
    rows = torch.arange(longest) + offset
    for own, other in zip(short.at(rows, torch.float32), long.at(rows, torch.float32), strict=True):
        assert torch.equal(own, other)
    assert len(short.cosines) == offset + longest


def test_long_sequences_have_rows_of_their_own_and_both_the_attention_factor() -> None:
    table = RotaryTable(LONG_ROPE, 20, device=CPU)
    first, moved = torch.tensor([3]), torch.tensor([3 + 10])
    assert not torch.equal(table.at(first, torch.float32)[0], table.at(moved, torch.float32)[0])
    for rows in (first, moved):
        cosines, sines = table.at(rows, torch.float32)
        torch.testing.assert_close(cosines.square() + sines.square(), torch.full((1, 2), 1.44))
