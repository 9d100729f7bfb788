"""Options of the services that `loramux up` passes on: it knows none of them, and each service explains its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import typer
from typer.core import TyperCommand

from loramux.cli.problems import USAGE_ERROR, CommandError

# What `up` does not know it keeps, in order, instead of refusing it.
SETTINGS = {"allow_extra_args": True, "ignore_unknown_options": True}
ORDERING_PREFIX = "--ordering-"

_OWN = ("--port-file", "--ordering-address", "--ordering-port-file", "--ordering-data-dir")
_SERVICES = {
    "inference_svc": "Any other option goes to the inference service:",
    "ordering_svc": f"One that begins with {ORDERING_PREFIX} goes, without ordering-, to the ordering service:",
}


def split_options(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """What goes to the inference service, and what to the ordering service.

    Raises CommandError for a word that belongs to no option, and for an option that `up` sets itself.
    """
    inference: list[str] = []
    ordering: list[str] = []
    target = None
    for word in words:
        name, equals, value = word.partition("=")
        if word.startswith("-"):
            if name in _OWN:
                raise CommandError("USAGE", f"{name} cannot be given: `loramux up` sets it itself", USAGE_ERROR)
            target = ordering if name.startswith(ORDERING_PREFIX) else inference
            word = f"--{name.removeprefix(ORDERING_PREFIX)}{equals}{value}" if target is ordering else word
        elif target is None:
            raise CommandError("USAGE", f"{word!r} belongs to no option", USAGE_ERROR)
        target.append(word)
    return inference, ordering


class UpCommand(TyperCommand):
    """A command whose help ends with what the services say of their options."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Writes the help; the services are asked at once, as each takes a moment to start."""
        environment = os.environ | {"COLUMNS": str(shutil.get_terminal_size().columns)}
        asked = {
            service: subprocess.Popen(
                [sys.executable, "-P", "-m", service, "--help"],
                env=environment,
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
            for service in _SERVICES
        }
        super().format_help(ctx, formatter)
        for service, process in asked.items():
            said, _ = process.communicate()
            typer.echo(_SERVICES[service])
            if process.returncode:
                typer.echo("it is not installed here: pip install 'loramux[inference,ordering]'\n")
            else:
                typer.echo(said.partition("╭─ Commands")[0].rstrip() + "\n")
