"""What one run of the command knows: where the services are, whether a program reads the output, and the consoles."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console

from loramux.cli.json_output import to_json
from loramux.client import Client
from loramux.client.blocking.client import DEFAULT_ADDRESS

DEFAULT_ORDERING_ADDRESS = "127.0.0.1:50051"

PIPE_WIDTH = 240
"""Columns of a table that nobody sees on a screen: cutting it at 80 would lose content."""

Value = TypeVar("Value")

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
AddressOption = Annotated[
    str | None, typer.Option("--address", metavar="HOST:PORT", help="Inference service. Default: $LORAMUX_ADDRESS.")
]
OrderingAddressOption = Annotated[
    str | None,
    typer.Option(
        "--ordering-address", metavar="HOST:PORT", help="Ordering service. Default: $LORAMUX_ORDERING_ADDRESS."
    ),
]


def _console(stderr: bool) -> Console:
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else PIPE_WIDTH
    return Console(file=stream, highlight=False, width=width, soft_wrap=False)


@dataclass(slots=True)
class Session:
    """One run of the command: results go to `out`, everything else to `err`."""

    json: bool = False
    address: str = DEFAULT_ADDRESS
    ordering_address: str = DEFAULT_ORDERING_ADDRESS
    out: Console = field(default_factory=lambda: _console(stderr=False))
    err: Console = field(default_factory=lambda: _console(stderr=True))

    def client(self) -> Client:
        """A client of both services; connects with its first call."""
        return Client(self.address, ordering=self.ordering_address)

    def emit(self, value: Value, show: Callable[[Value], Any]) -> None:
        """Prints a result: as one line of JSON, or as `show` makes it for people."""
        if self.json:
            self.write(to_json(value) + "\n")
        else:
            self.out.print(show(value))

    def write(self, text: str) -> None:
        """Puts text on stdout as it is: no markup, no wrapping."""
        self.out.file.write(text)
        self.out.file.flush()

    def say(self, text: str) -> None:
        """Puts a dim remark on stderr, for people only."""
        if not self.json:
            self.err.print(text, style="dim", markup=False, soft_wrap=True)


def open_session(
    context: typer.Context, as_json: bool, address: str | None = None, ordering_address: str | None = None
) -> Session:
    """The session of this run, with what was given after the subcommand."""
    session: Session = context.find_root().obj
    session.json = session.json or as_json
    session.address = address or session.address
    session.ordering_address = ordering_address or session.ordering_address
    return session
