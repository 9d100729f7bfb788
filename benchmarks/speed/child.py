"""Contenders that are libraries: a script in a Python of their own, asked over a pipe and answering with times.

The script loads its model, says `ready`, then reads one line of JSON for each run: the streams; and answers with one:
`{"seconds": S, "timings": [[prompt_tokens, new_tokens, first_token, last_token], ...]}`.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks.speed.workload import Run, Stream, Timing, checked

SCRIPTS = Path(__file__).parent / "children"


class Child:
    """A peer that lives in a process; closing it ends it."""

    def __init__(
        self,
        name: str,
        python: Path,
        script: str,
        arguments: Sequence[str],
        log: Path,
        *,
        environment: Mapping[str, str] | None = None,
        may_stop_early: bool = False,
    ) -> None:
        """Start the script and wait until its model is loaded.

        Raises:
            RuntimeError: it ended.
        """
        self.name = name
        self._log = log
        self._may_stop_early = may_stop_early
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                [str(python), str(SCRIPTS / script), *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                text=True,
                env=_environment() | dict(environment or {}),
                start_new_session=True,
            )
        self._read("ready")

    def close(self) -> None:
        """End the process and what it started: the workers of vLLM outlive it, and poll."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def run(self, streams: Sequence[Stream]) -> Run:
        """Answer all streams at once. Raises WrongAnswer."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([asdict(stream) for stream in streams]) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self._read("{"))
        run = Run(tuple(Timing(*timing) for timing in answer["timings"]), answer["seconds"])
        return checked(self.name, streams, run, may_stop_early=self._may_stop_early)

    def _read(self, beginning: str) -> str:
        """The next line that begins so: libraries print what they like in between."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith(beginning):
                return line
        raise RuntimeError(f"{self.name} ended: see {self._log}")


def _environment() -> dict[str, str]:
    """This process's variables but those that would lead a foreign Python to our packages."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
