"""`loramux adapters ...`."""

from __future__ import annotations

from typing import Annotated

import typer

from loramux.cli.choices import BaseOption, XLoraOption, chosen_adapters
from loramux.cli.session import AddressOption, JsonOption, open_session
from loramux.cli.tables import active_line, adapter_table, adapters_table, applied_ordering_table, update_lines

NameArgument = Annotated[str, typer.Argument(help="Name of the adapter.")]
PinOption = Annotated[bool, typer.Option("--pin", help="Never evict it to make room.")]
ExpectOption = Annotated[
    str | None, typer.Option("--expect", metavar="DIGEST", help="Only if the resident adapter has this digest.")
]


def list_adapters(context: typer.Context, address: AddressOption = None, as_json: JsonOption = False) -> None:
    """List the resident adapters and the active default."""
    session = open_session(context, as_json, address)
    with session.client() as client:
        adapters, active = client.adapters.list(), client.adapters.active()
        followed = client.adapters.followed()
    listed = {"adapters": adapters, "active": active, "followed": followed}
    session.emit(listed, lambda _: adapters_table(adapters, active, followed))


def get(context: typer.Context, name: NameArgument, address: AddressOption = None, as_json: JsonOption = False) -> None:
    """Show one resident adapter."""
    session = open_session(context, as_json, address)
    with session.client() as client:
        session.emit(client.adapters.get(name), adapter_table)


def load(
    context: typer.Context,
    name: NameArgument,
    source: Annotated[str, typer.Argument(help="A folder inside the service's adapter roots, or a hub id.")],
    replace: Annotated[bool, typer.Option("--replace", help="Replace a resident adapter of this name.")] = False,
    pin: PinOption = False,
    address: AddressOption = None,
    as_json: JsonOption = False,
) -> None:
    """Load an adapter and make it selectable by name."""
    session = open_session(context, as_json, address)
    with session.client() as client, session.err.status(f"loading {name}"):
        adapter = client.adapters.load(name, source, replace=replace, pinned=pin)
    session.emit(adapter, adapter_table)


def replace(
    context: typer.Context,
    name: NameArgument,
    source: Annotated[str, typer.Argument(help="A folder inside the service's adapter roots, or a hub id.")],
    expect: ExpectOption = None,
    pin: PinOption = False,
    address: AddressOption = None,
    as_json: JsonOption = False,
) -> None:
    """Replace a resident adapter; requests that run keep the version that they began with.

    Without --expect it replaces the version that is resident now, and fails if another comes in between.
    """
    session = open_session(context, as_json, address)
    with session.client() as client, session.err.status(f"replacing {name}"):
        expected = expect or client.adapters.get(name).digest
        adapter = client.adapters.replace(name, source, expected_digest=expected, pinned=pin)
    session.emit(adapter, adapter_table)


def unload(
    context: typer.Context,
    name: NameArgument,
    expect: ExpectOption = None,
    address: AddressOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take an adapter away from later requests."""
    session = open_session(context, as_json, address)
    with session.client() as client:
        session.emit(client.adapters.unload(name, expected_digest=expect), adapter_table)


def pin(context: typer.Context, name: NameArgument, address: AddressOption = None, as_json: JsonOption = False) -> None:
    """Keep an adapter from being evicted to make room."""
    session = open_session(context, as_json, address)
    with session.client() as client:
        session.emit(client.adapters.pin(name), adapter_table)


def unpin(
    context: typer.Context, name: NameArgument, address: AddressOption = None, as_json: JsonOption = False
) -> None:
    """Let an adapter be evicted again."""
    session = open_session(context, as_json, address)
    with session.client() as client:
        session.emit(client.adapters.unpin(name), adapter_table)


def watch(
    context: typer.Context,
    resume_token: Annotated[
        str | None, typer.Option("--resume", metavar="TOKEN", help="Go on after an earlier update.")
    ] = None,
    address: AddressOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print what is resident, then every change as it happens, until Ctrl-C."""
    session = open_session(context, as_json, address)
    with session.client() as client, client.adapters.watch(resume_token) as updates:
        try:
            for update in updates:
                session.emit(update, update_lines)
        except KeyboardInterrupt:
            session.say("the watch has ended")


def activate(
    context: typer.Context,
    adapters: Annotated[list[str] | None, typer.Argument(metavar="NAME[=WEIGHT]", help="LoRA adapters.")] = None,
    xlora: XLoraOption = None,
    base: BaseOption = False,
    address: AddressOption = None,
    as_json: JsonOption = False,
) -> None:
    """Replace the active default: LoRA adapters, an X-LoRA, or the base model."""
    session = open_session(context, as_json, address)
    choice = chosen_adapters(adapters, xlora, base)
    if choice is None:
        raise typer.BadParameter("name adapters, or say --xlora NAME or --base")
    with session.client() as client:
        session.emit(client.adapters.activate(choice), active_line)


def apply(
    context: typer.Context,
    ordering: Annotated[str, typer.Argument(metavar="ID[@REVISION|@TAG]", help="The ordering.")],
    adapter_model_id: Annotated[
        str | None, typer.Option(help="Where its adapters live, if not where it says: a folder or a hub id.")
    ] = None,
    activate: Annotated[bool, typer.Option("--activate/--no-activate", help="Activate what it brings.")] = True,
    address: AddressOption = None,
    as_json: JsonOption = False,
) -> None:
    """Have the inference service fetch an ordering and load what it names."""
    session = open_session(context, as_json, address)
    with session.client() as client, session.err.status(f"applying {ordering}"):
        applied = client.apply_ordering(ordering, adapter_model_id=adapter_model_id, activate=activate)
    session.emit(applied, applied_ordering_table)
