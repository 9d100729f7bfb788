"""How the service writes its log: lines for people on a terminal, JSON for programs elsewhere."""

from __future__ import annotations

import logging
import sys

import structlog


def configure_logs(log_format: str, log_level: str = "info") -> None:
    """Send the log to stderr as `json`, `console`, or whichever fits (`auto`); every line names its request."""
    # Plain tracebacks: the fancier ones show local variables, and with them what users write.
    as_console = log_format == "console" or (log_format == "auto" and sys.stderr.isatty())
    renderer: list[structlog.typing.Processor] = (
        [structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)]
        if as_console
        else [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[log_level.upper()]),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    # Libraries speak the standard way: what they have to say stands beside ours, without their chatter.
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
