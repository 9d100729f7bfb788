"""The most probable tokens of a row of logits, without sorting the row."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_NUM_GROUPS = 1024


def largest(values: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """Indices of the `count` largest of float32 [n], the largest first; of equal ones the one with the lower index.

    All indices if there are not so many. A value that is not a number ranks anywhere.
    """
    bound = _bound(values, count) if count < len(values) else np.float32(-np.inf)
    # Not `>=`: where the bound is not a number, everything has to stay.
    candidates = (~(values < bound)).nonzero()[0]
    return candidates[(-values[candidates]).argsort(kind="stable")[:count]]


def _bound(values: NDArray[np.float32], count: int) -> np.float32:
    """A number that at least `count` values reach, and hardly more.

    The largest value of each of many groups are so many values: if `count` of these reach the bound, so many of all do.
    Only a value that is not the largest of its group can reach it beside them.
    """
    group_size = len(values) // _NUM_GROUPS
    if group_size < 2 or 2 * count > _NUM_GROUPS:
        return _nth_largest(values, count)
    # A group is a column: so the largest of all groups are found many at a time.
    groups = values[: group_size * _NUM_GROUPS].reshape(group_size, _NUM_GROUPS)
    return _nth_largest(groups.max(axis=0), count)


def _nth_largest(values: NDArray[np.float32], count: int) -> np.float32:
    place = len(values) - count
    bound: np.float32 = np.partition(values, place)[place]
    return bound
