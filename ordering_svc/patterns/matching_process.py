"""The program of the process that runs regular expressions: standard library only, started by its path.

Reads one JSON object from stdin, `{"patterns": [[expression, is_whole], ...], "paths": [...]}`, and writes one to
stdout: `{"answers": [[[path number, group idx or null], ...], ...]}`, or `{"invalid": [pattern number, fault, position
or null]}`.
"""

from __future__ import annotations

import json
import re
import sys
import warnings
from collections.abc import Sequence
from typing import Any

CPU_SECONDS = 1
MEMORY_BYTES = 512 * 2**20


def answer(patterns: Sequence[tuple[str, bool]], paths: Sequence[str]) -> dict[str, Any]:
    """What is written to stdout; takes whatever time the patterns take."""
    answers = []
    for number, (expression, is_whole) in enumerate(patterns):
        try:
            compiled = re.compile(expression)
        except re.error as error:
            return {"invalid": [number, error.msg, error.pos]}
        except (RecursionError, OverflowError) as error:
            return {"invalid": [number, f"it is too deep or too large ({type(error).__name__})", None]}
        match = compiled.fullmatch if is_whole else compiled.match
        found = ((place, match(path)) for place, path in enumerate(paths))
        answers.append([(place, hit.groupdict().get("idx")) for place, hit in found if hit])
    return {"answers": answers}


def limit_this_process() -> None:
    """CPU time, not time on the clock: a busy machine must not make a good pattern fail."""
    try:
        import resource
    except ImportError:  # a platform without them: the parent's clock is the only limit
        return
    for kind, limit in ((resource.RLIMIT_CPU, CPU_SECONDS), (resource.RLIMIT_AS, MEMORY_BYTES)):
        try:
            resource.setrlimit(kind, (limit, limit))
        except (ValueError, OSError):  # a lower limit holds already, or the platform has none of this kind
            continue


def main() -> None:
    """Answer one request."""
    limit_this_process()
    warnings.simplefilter("ignore")
    request = json.load(sys.stdin)
    json.dump(answer(request["patterns"], request["paths"]), sys.stdout)


if __name__ == "__main__":
    main()
