"""`loramux ordering delete|undelete|purge`: taking orderings away, and bringing them back."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from loramux.cli.ordering import EtagOption, IdArgument, RequestIdOption, ValidateOnlyOption, note_validate_only
from loramux.cli.ordering_tables import ordering_table
from loramux.cli.session import JsonOption, OrderingAddressOption, Session, open_session
from loramux.client import Ordering


def delete(
    context: typer.Context,
    ordering_id: IdArgument,
    etag: EtagOption = None,
    validate_only: ValidateOnlyOption = False,
    request_id: RequestIdOption = None,
    ordering_address: OrderingAddressOption = None,
    as_json: JsonOption = False,
) -> None:
    """Delete an ordering; its history is kept and its id stays taken, until it is purged.

    Example: loramux ordering delete demo
    """
    session = open_session(context, as_json, None, ordering_address)
    with session.client() as client:
        gone = client.orderings.delete(ordering_id, etag=etag, validate_only=validate_only, request_id=request_id)
    session.emit(gone, lambda gone: f"deleted {gone.id}")
    session.say(f"`loramux ordering undelete {gone.id}` brings it back")
    note_validate_only(session, validate_only)


def undelete(
    context: typer.Context,
    ordering_id: IdArgument,
    etag: EtagOption = None,
    validate_only: ValidateOnlyOption = False,
    request_id: RequestIdOption = None,
    ordering_address: OrderingAddressOption = None,
    as_json: JsonOption = False,
) -> None:
    """Bring a deleted ordering back as it was. `list --show-deleted` shows which there are.

    Example: loramux ordering undelete demo
    """
    session = open_session(context, as_json, None, ordering_address)
    with session.client() as client:
        ordering = client.orderings.undelete(ordering_id, etag=etag, validate_only=validate_only, request_id=request_id)
    session.emit(ordering, ordering_table)
    note_validate_only(session, validate_only)


def purge(
    context: typer.Context,
    ordering_id: IdArgument,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    etag: EtagOption = None,
    validate_only: ValidateOnlyOption = False,
    request_id: RequestIdOption = None,
    ordering_address: OrderingAddressOption = None,
    as_json: JsonOption = False,
) -> None:
    """Remove a deleted ordering for good, with all its revisions and tags. Asks first.

    Example: loramux ordering purge demo --yes
    """
    session = open_session(context, as_json, None, ordering_address)
    with session.client() as client:
        if not yes and not validate_only:
            # What was agreed to must still be what is there when the purge arrives.
            current = client.orderings.get(ordering_id, show_deleted=True)
            etag = etag or current.etag
            _ask(session, current, client.orderings.purge(ordering_id, etag=etag, validate_only=True))
        count = client.orderings.purge(ordering_id, etag=etag, validate_only=validate_only, request_id=request_id)
    session.emit({"purged_revisions": count}, lambda _: f"purged {ordering_id}: {_revisions(count)} removed")
    note_validate_only(session, validate_only)


def _ask(session: Session, ordering: Ordering, count: int) -> None:
    if session.json or not sys.stdin.isatty():
        raise typer.BadParameter(f"{ordering.id} cannot be brought back after this, and nobody can be asked: say --yes")
    question = f"Remove {ordering.id} for good, with {_revisions(count)}?"
    typer.confirm(question, abort=True, err=True)


def _revisions(count: int) -> str:
    return f"{count} revision" if count == 1 else f"{count} revisions"
