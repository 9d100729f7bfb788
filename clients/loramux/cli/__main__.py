"""Entry point of the `loramux` command."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import typer

from loramux.cli.app import app
from loramux.cli.problems import INTERRUPTED, USAGE_ERROR, CommandError, report_command_error, report_service_error
from loramux.cli.session import Session
from loramux.client import LoramuxError


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code: 0, 1 for a refusal or failure, 2 for wrong usage, 130 if interrupted."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    session = Session()
    try:
        return _run(words, session)
    except LoramuxError as error:
        return report_service_error(session, error)
    except CommandError as error:
        return report_command_error(session, error.reason, str(error), error.exit_code)
    except OSError as error:
        named = error.filename is not None and error.strerror is not None
        message = f"{error.filename}: {error.strerror}" if named else str(error)
        return report_command_error(session, "FILE", message, 1)
    except KeyboardInterrupt:
        return INTERRUPTED


def _run(words: list[str], session: Session) -> int:
    if "--json" not in words:
        return _exit_code(words, session, standalone=True)
    try:
        return _exit_code(words, session, standalone=False)
    except typer.Abort:
        return INTERRUPTED
    except Exception as error:
        # The class of all usage errors is typer's own or click's, by version; it is what BadParameter derives from.
        if not isinstance(error, typer.BadParameter.__mro__[1]):
            raise
        session.json = True
        return report_command_error(session, "USAGE", str(getattr(error, "message", error)), USAGE_ERROR)


def _exit_code(words: list[str], session: Session, *, standalone: bool) -> int:
    try:
        result = app(words, obj=session, prog_name="loramux", standalone_mode=standalone)
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else 0
    return result if isinstance(result, int) else 0


if __name__ == "__main__":
    sys.exit(main())
