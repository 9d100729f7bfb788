"""How failures are shown: one red line and a table of violations, or JSON; and the exit code that goes with them."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from loramux.cli.hints import hint
from loramux.cli.json_output import to_json
from loramux.cli.session import Session
from loramux.client import LoramuxError

SERVICE_ERROR = 1
USAGE_ERROR = 2
INTERRUPTED = 130


class CommandError(Exception):
    """The command cannot do what it was asked, for a reason of its own: a file, a missing package, a port."""

    def __init__(self, reason: str, message: str, exit_code: int = SERVICE_ERROR) -> None:
        super().__init__(message)
        self.reason = reason
        self.exit_code = exit_code


def report_service_error(session: Session, error: LoramuxError) -> int:
    """Shows what a service refused; returns the exit code."""
    if session.json:
        failure = error.failure
        session.write(to_json({"error": failure}) + "\n")
        return SERVICE_ERROR
    _red_line(session, error.message, error.reason or error.code)
    if error.violations and not (len(error.violations) == 1 and error.violations[0].description in error.message):
        table = Table("Field", "Problem", "Reason", box=None, header_style="bold")
        for violation in error.violations:
            table.add_row(Text(violation.field), Text(violation.description), Text(violation.reason, style="dim"))
        session.err.print(table)
    if advice := hint(error):
        session.say(advice)
    return SERVICE_ERROR


def report_command_error(session: Session, reason: str, message: str, exit_code: int) -> int:
    """Shows what went wrong on this side; returns the exit code."""
    if session.json:
        session.write(to_json({"error": {"code": "CLIENT", "message": message, "reason": reason}}) + "\n")
    else:
        _red_line(session, message, reason)
    return exit_code


def _red_line(session: Session, message: str, reason: str) -> None:
    line = Text.assemble(("error: ", "bold red"), (message, "red"), (f" [{reason}]", "dim red"))
    session.err.print(line, soft_wrap=True)
