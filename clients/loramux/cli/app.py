"""The tree of commands and the options that all of them share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import Annotated, Any

import typer

from loramux.cli import (
    adapters,
    chat,
    distortion,
    generate,
    lint,
    model,
    ordering,
    ordering_files,
    ordering_history,
    ordering_making,
    ordering_removal,
    ordering_watch,
    scalings,
    service_options,
    up,
    xlora_conversion,
)
from loramux.cli.session import DEFAULT_ORDERING_ADDRESS, open_session
from loramux.client.blocking.client import DEFAULT_ADDRESS

app = typer.Typer(
    name="loramux",
    help="One quantized base model, many LoRA and X-LoRA adapters.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
ordering_app = typer.Typer(help="Keep, make and check ordering files.", no_args_is_help=True)
adapters_app = typer.Typer(help="Load, replace, unload, pin, watch and activate adapters.", no_args_is_help=True)
scalings_app = typer.Typer(help="Look at what an X-LoRA mixed.", no_args_is_help=True)


@app.callback(invoke_without_command=True)
def options(
    context: typer.Context,
    address: Annotated[
        str, typer.Option(envvar="LORAMUX_ADDRESS", metavar="HOST:PORT", help="Inference service.")
    ] = DEFAULT_ADDRESS,
    ordering_address: Annotated[
        str, typer.Option(envvar="LORAMUX_ORDERING_ADDRESS", metavar="HOST:PORT", help="Ordering service.")
    ] = DEFAULT_ORDERING_ADDRESS,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
    show_version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    """One quantized base model, many LoRA and X-LoRA adapters."""
    session = open_session(context, as_json, address, ordering_address)
    if show_version:
        number = version("loramux")
        session.emit({"version": number}, lambda _: f"loramux {number}")
        raise typer.Exit


app.command("up", cls=service_options.UpCommand, context_settings=service_options.SETTINGS)(up.up)
app.command("generate")(generate.generate)
app.command("chat")(chat.chat)
app.command("model")(model.model)
app.command("distortion")(distortion.distortion)
app.command("tokenize")(model.tokenize)
app.command("detokenize")(model.detokenize)

_ORDERING_COMMANDS: Mapping[str, Callable[..., Any]] = {
    "create": ordering.create,
    "list": ordering.list_orderings,
    "show": ordering.show,
    "history": ordering_history.history,
    "diff": ordering_history.diff,
    "update": ordering.update,
    "rollback": ordering_history.rollback,
    "tag": ordering_history.tag,
    "untag": ordering_history.untag,
    "watch": ordering_watch.watch,
    "delete": ordering_removal.delete,
    "undelete": ordering_removal.undelete,
    "purge": ordering_removal.purge,
    "import": ordering_files.import_file,
    "export": ordering_files.export_file,
    "generate": ordering_making.generate,
    "validate": ordering_files.validate,
    "set-names": ordering_making.set_names,
    "add-preload": ordering_making.add_preload,
    "remove-preload": ordering_making.remove_preload,
}
_ADAPTER_COMMANDS: Mapping[str, Callable[..., Any]] = {
    "list": adapters.list_adapters,
    "get": adapters.get,
    "load": adapters.load,
    "convert-xlora": xlora_conversion.convert,
    "replace": adapters.replace,
    "unload": adapters.unload,
    "pin": adapters.pin,
    "unpin": adapters.unpin,
    "watch": adapters.watch,
    "activate": adapters.activate,
    "apply": adapters.apply,
}
_SCALINGS_COMMANDS: Mapping[str, Callable[..., Any]] = {"plot": scalings.plot, "export": scalings.export}

for group, commands in (
    (ordering_app, _ORDERING_COMMANDS),
    (adapters_app, _ADAPTER_COMMANDS),
    (scalings_app, _SCALINGS_COMMANDS),
):
    for name, command in commands.items():
        group.command(name)(command)
ordering_app.command("lint", context_settings=lint.SETTINGS)(lint.lint)

app.add_typer(ordering_app, name="ordering")
app.add_typer(adapters_app, name="adapters")
app.add_typer(scalings_app, name="scalings")
