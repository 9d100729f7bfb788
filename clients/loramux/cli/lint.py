"""`loramux ordering lint`: judges ordering files without a service."""

from __future__ import annotations

import subprocess
import sys

import typer

from loramux.cli.session import JsonOption, open_session

# All words but --json go on as they are: what they mean is the linter's to say, and so is --help.
SETTINGS = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


def lint(context: typer.Context, as_json: JsonOption = False) -> None:
    """Judge ordering files without a service: for a shell, a pre-commit hook, a workflow.

    The rules belong to the ordering service, which no client imports; its linter runs as a program of its own, with the
    same Python.
    """
    session = open_session(context, as_json)
    words = [*context.args, *(["--format", "json"] if session.json else [])]
    program = [sys.executable, "-P", "-m", "ordering_svc.lint", *words]
    raise typer.Exit(subprocess.run(program, check=False).returncode)
