"""How far loading has come, for people and for logs."""

from __future__ import annotations

import io
import sys

import pytest
from structlog.testing import capture_logs

from inference_svc.weights.load_progress import ProgressLines, shown_progress


class Terminal(io.StringIO):
    """What people look at."""

    def isatty(self) -> bool:
        return True


def test_a_line_every_two_seconds_says_how_far_it_is() -> None:
    now = [100.0]
    lines = ProgressLines(clock=lambda: now[0])
    with capture_logs() as logs:
        for second in range(6):
            now[0] = 100.0 + second
            lines(10 * second, 60)
    assert [(entry["event"], entry["percent"], entry["bytes"], entry["total_bytes"]) for entry in logs] == [
        ("loading weights", 33, 20, 60),
        ("loading weights", 66, 40, 60),
    ]


def test_what_is_quickly_done_needs_no_line() -> None:
    with capture_logs() as logs:
        lines = ProgressLines(clock=lambda: 5.0)
        lines(0, 0)
        lines(1, 1)
    assert logs == []


def test_people_at_a_terminal_see_a_bar_that_goes_away(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with capture_logs() as logs, shown_progress("auto") as on_progress:
        on_progress(500_000, 2_000_000)
        on_progress(2_000_000, 2_000_000)
    assert logs == []
    assert "loading weights" in terminal.getvalue()
    assert "2.0/2.0 MB" in terminal.getvalue()
    assert terminal.getvalue().endswith("\x1b[2K")  # the line is cleared


@pytest.mark.parametrize(("log_format", "is_terminal"), [("json", True), ("auto", False), ("console", False)])
def test_programs_see_lines(monkeypatch: pytest.MonkeyPatch, log_format: str, is_terminal: bool) -> None:
    stream = Terminal() if is_terminal else io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    with shown_progress(log_format) as on_progress:
        assert isinstance(on_progress, ProgressLines)
        on_progress(1, 2)
    assert stream.getvalue() == ""
