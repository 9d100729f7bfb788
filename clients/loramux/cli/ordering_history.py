"""`loramux ordering history|diff|rollback|tag|untag`: the revisions of an ordering."""

from __future__ import annotations

from typing import Annotated

import typer

from loramux.cli.ordering import (
    EtagOption,
    IdArgument,
    NameArgument,
    RequestIdOption,
    ValidateOnlyOption,
    note_validate_only,
)
from loramux.cli.ordering_tables import diff_view, history_table, ordering_table
from loramux.cli.problems import SERVICE_ERROR
from loramux.cli.session import JsonOption, OrderingAddressOption, open_session
from loramux.client.adapters import short_name

TagArgument = Annotated[str, typer.Argument(metavar="TAG", help="Small letters, digits and hyphens, as in `prod`.")]


def history(
    context: typer.Context,
    ordering_id: IdArgument,
    show_deleted: Annotated[bool, typer.Option("--show-deleted", help="Also of a deleted ordering.")] = False,
    ordering_address: OrderingAddressOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the revisions of an ordering, newest first, with their tags and how they were made.

    Example: loramux ordering history demo
    """
    session = open_session(context, as_json, None, ordering_address)
    with session.client() as client:
        session.emit(client.orderings.revisions(ordering_id, show_deleted=show_deleted), history_table)


def diff(
    context: typer.Context,
    before: Annotated[str, typer.Argument(metavar="ID[@REVISION]", help="Before.")],
    after: Annotated[
        str | None, typer.Argument(metavar="ID[@REVISION]", help="After. Default: the newest revision of the first.")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Show every difference, however many there are.")] = False,
    exit_code: Annotated[bool, typer.Option("--exit-code", help="Exit with 1 if there are differences.")] = False,
    ordering_address: OrderingAddressOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show how two revisions differ, of one ordering or of two.

    Example: loramux ordering diff demo@prod demo
    """
    session = open_session(context, as_json, None, ordering_address)
    other = short_name(before).partition("@")[0] if after is None else after
    with session.client() as client:
        found = client.orderings.diff(before, other)
    session.emit(found, lambda diff: diff_view(before, other, diff, every=every))
    if exit_code and found.differences:
        raise typer.Exit(SERVICE_ERROR)


def rollback(
    context: typer.Context,
    ordering_id: IdArgument,
    revision: Annotated[str, typer.Argument(help="Its number, the first digits of its id, or a tag.")],
    etag: EtagOption = None,
    validate_only: ValidateOnlyOption = False,
    request_id: RequestIdOption = None,
    ordering_address: OrderingAddressOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make the document of an earlier revision the newest one, as a new revision: nothing is lost.

    Example: loramux ordering rollback demo 3
    """
    session = open_session(context, as_json, None, ordering_address)
    with session.client() as client:
        ordering = client.orderings.rollback(
            ordering_id, revision, etag=etag, validate_only=validate_only, request_id=request_id
        )
    session.emit(ordering, ordering_table)
    note_validate_only(session, validate_only)


def tag(
    context: typer.Context,
    name: NameArgument,
    tag: TagArgument,
    etag: EtagOption = None,
    validate_only: ValidateOnlyOption = False,
    request_id: RequestIdOption = None,
    ordering_address: OrderingAddressOption = None,
    as_json: JsonOption = False,
) -> None:
    """Point a tag at a revision, from wherever it pointed before; without one, at the newest.

    Example: loramux ordering tag demo@3 prod
    """
    session = open_session(context, as_json, None, ordering_address)
    with session.client() as client:
        ordering = client.orderings.tag(name, tag, etag=etag, validate_only=validate_only, request_id=request_id)
    where = f"{ordering.id}@{ordering.revision_number}"
    session.emit(ordering, lambda _: f"{ordering.id}@{tag} is {where} ({ordering.revision_id})")
    note_validate_only(session, validate_only)


def untag(
    context: typer.Context,
    ordering_id: IdArgument,
    tag: TagArgument,
    etag: EtagOption = None,
    validate_only: ValidateOnlyOption = False,
    request_id: RequestIdOption = None,
    ordering_address: OrderingAddressOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take a tag away; the revision stays.

    Example: loramux ordering untag demo prod
    """
    session = open_session(context, as_json, None, ordering_address)
    with session.client() as client:
        ordering = client.orderings.untag(
            ordering_id, tag, etag=etag, validate_only=validate_only, request_id=request_id
        )
    session.emit(ordering, lambda _: f"{ordering.id} has no tag {tag} any more")
    note_validate_only(session, validate_only)
