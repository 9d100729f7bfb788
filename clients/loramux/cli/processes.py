"""One service as a child process: started in a process group of its own, logging into a file, ended by signals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

MAX_LOG_BYTES = 16 * 1024 * 1024
"""A log larger than this is put aside when the service starts again."""


class ServiceProcess:
    """A running service.

    Its own process group keeps the terminal's Ctrl-C away from it, so that `loramux up` decides the order of the ends.
    """

    def __init__(self, name: str, program: Sequence[str], log: Path, port_file: Path) -> None:
        self.name = name
        self.log = log
        self.port_file = port_file
        log.parent.mkdir(parents=True, exist_ok=True)
        if log.exists() and log.stat().st_size > MAX_LOG_BYTES:
            log.replace(log.with_suffix(".log.1"))
        with log.open("ab") as output:
            self._log_start = self._log_read = output.tell()
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "loramux.cli.bound_child", str(os.getpid()), *program],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                process_group=0,
            )

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs; negative: the signal that ended it."""
        return self._process.poll()

    def address(self) -> str | None:
        """Where it listens; None until it does."""
        try:
            return self.port_file.read_text(encoding="utf-8").strip() or None
        except FileNotFoundError:
            return None

    def terminate(self) -> None:
        """Asks it to drain and end."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """Ends it and whatever it started."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        if self.exit_code is None:
            with suppress(ProcessLookupError):
                os.killpg(self.pid, number)

    def new_log_text(self) -> str:
        """The whole lines it logged since the last call."""
        with self.log.open("rb") as log:
            log.seek(self._log_read)
            data = log.read()
        data = data[: data.rfind(b"\n") + 1]  # the rest of the last line is still to come
        self._log_read += len(data)
        return data.decode("utf-8", "replace")

    def last_log_lines(self, count: int = 12) -> tuple[str, ...]:
        """The end of what it logged in this run, readable for people."""
        with self.log.open("rb") as log:
            log.seek(self._log_start)
            lines = log.read().decode("utf-8", "replace").splitlines()
        return tuple(readable(line) for line in lines[-count:])


def readable(line: str) -> str:
    """A log line for people: JSON lines become `level: event key=value ...`."""
    entry = _entry(line)
    if entry is None:
        return line
    rest = " ".join(f"{key}={value}" for key, value in entry.items() if key not in ("event", "level", "timestamp"))
    return f"{entry.get('level', 'info')}: {entry['event']} {rest}".rstrip()


def progress_in(line: str) -> str | None:
    """What a log line says of something that takes long, `loading weights 40%`; None if it says nothing of that."""
    entry = _entry(line)
    if entry is None or "percent" not in entry:
        return None
    size = f" of {entry['size']}" if "size" in entry else ""
    left = f", {entry['left']} left" if "left" in entry else ""
    return f"{entry['event']} {entry['percent']}%{size}{left}"


def _entry(line: str) -> dict[str, object] | None:
    """The fields of a line in JSON; None for any other."""
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) and "event" in entry else None
