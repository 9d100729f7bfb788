"""Answers which module paths a stranger's regular expressions match, within bounds.

PEFT's rule is that of Python's own engine, look-around and all, so no engine with a linear bound can take its place;
and that engine holds the interpreter while it runs, so no thread could stop it. It runs in a process of its own that
the kernel ends when its CPU time or memory is spent. Only requests with a regular expression pay for that process.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from ordering_svc.domain.path_patterns import PathPattern
from ordering_svc.errors import PatternInvalid, PatternTooCostly
from ordering_svc.patterns.matching_process import CPU_SECONDS

PROGRAM = Path(__file__).with_name("matching_process.py")
CLOCK_SECONDS = 20.0  # for a process that waits instead of computing


def match_paths(patterns: Sequence[PathPattern], paths: Sequence[str]) -> Sequence[Mapping[str, str | None]]:
    """For each pattern the paths that it matches, with what its group `idx` caught; blocking.

    Raises:
        PatternInvalid: one cannot be compiled.
        PatternTooCostly: together they take more than their share of time or memory.
    """
    if not patterns:
        return ()
    request = {"patterns": [(pattern.expression, pattern.is_whole) for pattern in patterns], "paths": paths}
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-S", str(PROGRAM)],
            input=json.dumps(request).encode(),
            capture_output=True,
            timeout=CLOCK_SECONDS,
            check=True,
        )
    except (subprocess.TimeoutExpired, subprocess.CalledProcessError):
        description = (
            f"the regular expression does not come to an end within {CPU_SECONDS} s: avoid repetitions inside"
            " repetitions, or name the modules in a list"
        )
        raise PatternTooCostly(patterns[0].field, description) from None
    answer = json.loads(done.stdout)
    if "invalid" in answer:
        number, fault, position = answer["invalid"]
        pattern = patterns[number]
        if position is not None:  # counted in what was compiled, told in what was sent
            position = min(max(position - len(pattern.before), 0), len(pattern.text))
        raise PatternInvalid(pattern.field, pattern.text, fault, position)
    return [{paths[place]: group for place, group in hits} for hits in answer["answers"]]
