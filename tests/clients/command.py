"""What tests of the command line share."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

Run = Callable[..., tuple[int, str, str]]


def parsed(result: tuple[int, str, str], code: int = 0) -> Any:
    """The JSON that a command printed, and nothing else."""
    assert result[0] == code, result
    assert result[1].count("\n") == 1
    assert result[2] == ""
    return json.loads(result[1])
