"""`loramux ordering watch`: changes as they are written."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from loramux.cli.json_output import to_json
from loramux.cli.ordering_tables import change_line
from loramux.cli.session import JsonOption, OrderingAddressOption, Session, open_session
from loramux.client import LoramuxError, OrderingWatch


def watch(
    context: typer.Context,
    ordering_ids: Annotated[
        list[str] | None, typer.Argument(metavar="ID...", help="Only these orderings. Default: all.")
    ] = None,
    after: Annotated[
        int | None,
        typer.Option(metavar="SEQUENCE", help="Begin after this change; 0: with the first. Default: with the next."),
    ] = None,
    ordering_address: OrderingAddressOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print every change as it is written, one a line, until Ctrl-C; goes on by itself after an outage.

    Example: loramux ordering watch demo --after 0
    """
    session = open_session(context, as_json, None, ordering_address)

    def tell(error: LoramuxError) -> None:
        session.say(f"{error.message}; waiting for it to come back")

    with session.client() as client, client.orderings.watch(ordering_ids or (), after=after, on_outage=tell) as changes:
        try:
            _print(session, changes)
        except KeyboardInterrupt:
            session.say(f"to go on from here: loramux ordering watch --after {changes.sequence or 0}")
        except BrokenPipeError:
            # Who read the lines has read enough. What Python still holds for them must not be written at its end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _print(session: Session, changes: OrderingWatch) -> None:
    session.say(f"watching after change {changes.started()}; Ctrl-C ends it")
    for change in changes:
        if session.json:
            session.write(to_json(change) + "\n")
        else:
            session.out.print(change_line(change), soft_wrap=True)
            session.out.file.flush()
