"""`loramux adapters ...`."""

from __future__ import annotations

from typing import Annotated

import typer

from loramux.cli.choices import BaseOption, XLoraOption, chosen_adapters
from loramux.cli.session import AddressOption, JsonOption, open_session
from loramux.cli.tables import active_line, adapter_table, adapters_table, applied_ordering_table

NameArgument = Annotated[str, typer.Argument(help="Name of the adapter.")]


def list_adapters(context: typer.Context, address: AddressOption = None, as_json: JsonOption = False) -> None:
    """List the resident adapters and the active default."""
    session = open_session(context, as_json, address)
    with session.client() as client:
        adapters, active = client.adapters.list(), client.adapters.active()
    session.emit({"adapters": adapters, "active": active}, lambda _: adapters_table(adapters, active))


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
    address: AddressOption = None,
    as_json: JsonOption = False,
) -> None:
    """Load an adapter and make it selectable by name."""
    session = open_session(context, as_json, address)
    with session.client() as client, session.err.status(f"loading {name}"):
        adapter = client.adapters.load(name, source, replace=replace)
    session.emit(adapter, adapter_table)


def unload(
    context: typer.Context, name: NameArgument, address: AddressOption = None, as_json: JsonOption = False
) -> None:
    """Take an adapter away from later requests."""
    session = open_session(context, as_json, address)
    with session.client() as client:
        session.emit(client.adapters.unload(name), adapter_table)


def activate(
    context: typer.Context,
    adapters: Annotated[list[str] | None, typer.Argument(metavar="[NAME[=WEIGHT]]...", help="LoRA adapters.")] = None,
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
    ordering: Annotated[str, typer.Argument(metavar="ID[@REVISION]", help="The ordering.")],
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
