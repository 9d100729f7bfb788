"""The log as programs read it: JSON lines on stderr that name the request and keep what users write to themselves."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
import structlog

from inference_svc.logs import configure_logs


@pytest.fixture(autouse=True)
def _restore_the_log() -> Iterator[None]:
    yield
    structlog.contextvars.clear_contextvars()
    structlog.reset_defaults()


def fail(prompt: str) -> None:
    raise ValueError(f"{len(prompt)} characters")


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_a_traceback_shows_no_local_variables(log_format: str, capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs(log_format)
    try:
        fail("-".join(["a", "secret", "prompt"]))
    except ValueError as error:
        structlog.get_logger().error("internal error", exc_info=error)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "ValueError: 15 characters" in captured.err
    assert "a-secret-prompt" not in captured.err


def test_every_line_names_its_request(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs("auto")  # no terminal here: JSON
    structlog.contextvars.bind_contextvars(request_id="r-1", method="Generate")
    structlog.get_logger().info("request ended", outcome="eos")
    entry = json.loads(capsys.readouterr().err)
    assert {key: entry[key] for key in ("event", "level", "request_id", "method", "outcome")} == {
        "event": "request ended",
        "level": "info",
        "request_id": "r-1",
        "method": "Generate",
        "outcome": "eos",
    }
