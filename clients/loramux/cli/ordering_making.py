"""`loramux ordering generate|set-names|add-preload|remove-preload`: ordering files that are made, not written."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer

from loramux.cli.ordering import EtagOption, KindOption, LabelOption, PlaceOption, names, pairs
from loramux.cli.ordering_files import OutputOption, SourceArgument, deliver, file_named, model_reference
from loramux.cli.ordering_tables import ordering_table
from loramux.cli.problems import USAGE_ERROR, CommandError
from loramux.cli.session import JsonOption, OrderingAddressOption, Session, open_session
from loramux.client import (
    Client,
    ConfigModel,
    DerivedOrdering,
    Destination,
    OrderingFile,
    PreloadAdapter,
)

SaveOption = Annotated[
    str | None, typer.Option("--save", metavar="ID", help="Store the result as this ordering, with how it was made.")
]
AllowExistingOption = Annotated[
    bool, typer.Option("--allow-existing", help="With --save: make a new revision if the id is taken.")
]


def generate(
    context: typer.Context,
    model: Annotated[
        str | None, typer.Option(metavar="PATH|HUB_ID", help="Folder with config.json, .gguf file, or hub id.")
    ] = None,
    targets: Annotated[
        str | None, typer.Option(metavar="A,B,...|all-linear", help="Target modules, for instance q_proj,v_proj.")
    ] = None,
    target_pattern: Annotated[
        str | None, typer.Option(metavar="REGEX", help="Instead: modules whose whole path matches, as in PEFT.")
    ] = None,
    exclude: Annotated[str, typer.Option(metavar="A,B,...", help="Modules to leave out.")] = "",
    exclude_pattern: Annotated[str | None, typer.Option(metavar="REGEX", help="Instead: by their whole path.")] = None,
    layers: Annotated[str, typer.Option(metavar="0,1,...", help="Only these decoder layers.")] = "",
    layers_pattern: Annotated[str, typer.Option(metavar="A,...", help="What the list of layers is called.")] = "",
    adapters: Annotated[str | None, typer.Option(metavar="A,B,...", help="Adapter names, in training order.")] = None,
    base_model_id: Annotated[str | None, typer.Option(help="Written to the file; default: --model.")] = None,
    output: OutputOption = None,
    save: SaveOption = None,
    allow_existing: AllowExistingOption = False,
    etag: EtagOption = None,
    kind: KindOption = None,
    adapter_model_id: PlaceOption = None,
    label: LabelOption = None,
    ordering_address: OrderingAddressOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make an ordering from a model's config and target modules; on a terminal, what is missing is asked for.

    Example: loramux ordering generate --model org/model --targets q_proj,v_proj --adapters math,code -o math-code.json
    """
    session = open_session(context, as_json, None, ordering_address)
    may_ask = sys.stdin.isatty() and not as_json
    is_bare = model is None and targets is None and target_pattern is None
    model = model or _asked(may_ask, "--model", "Base model (folder, .gguf file or hub id)")
    if target_pattern is None:
        targets = targets or _asked(may_ask, "--targets", "Target modules, with commas between them")
    if adapters is None:
        adapters = _asked(True, "--adapters", "Adapter names, as in training", "") if is_bare and may_ask else ""
    if is_bare and may_ask and output is None and save is None:
        output = Path(_asked(True, "--output", "Output file"))
    reference = model_reference(model)
    if isinstance(reference, ConfigModel):
        base_model_id = base_model_id or model
    destination = None
    if save is not None:
        destination = Destination(
            save, allow_existing, etag, kind, adapter_model_id, labels=pairs(label) if label else None
        )
    with session.client() as client, session.err.status("reading the model's config"):
        made = client.orderings.generate(
            reference,
            target_pattern or _list_or_word(targets or ""),
            names(adapters),
            base_model_id=base_model_id,
            exclude=exclude_pattern or names(exclude),
            layers_to_transform=_indices(layers),
            layers_pattern=names(layers_pattern),
            destination=destination,
        )
    if made.ordering is None or output is not None:
        deliver(session, OrderingFile(made.json, ""), output)
    if made.ordering is not None:
        session.emit(made.ordering, ordering_table)
    session.say(f"{made.architecture}: {len(made.document.layers or {})} layers")


def set_names(
    context: typer.Context,
    source: SourceArgument,
    adapters: Annotated[str, typer.Option(metavar="A,B,...", help="The new `order`; for X-LoRA the training order.")],
    output: OutputOption = None,
    save: SaveOption = None,
    ordering_address: OrderingAddressOption = None,
    as_json: JsonOption = False,
) -> None:
    """Replace the adapter names of a file (to --output), or of a stored ordering (a new revision).

    Example: loramux ordering set-names demo --adapters math,code --save demo-2
    """
    session = open_session(context, as_json, None, ordering_address)
    new = names(adapters)
    _derive(
        session,
        source,
        output,
        save,
        lambda client, start, where: client.orderings.derive(start, adapters=new, destination=where),
    )


def add_preload(
    context: typer.Context,
    source: SourceArgument,
    adapters: Annotated[str, typer.Option(metavar="A,B,...", help="Adapters to preload.")],
    adapter_model_id: Annotated[str, typer.Option(help="Where they live: one folder or hub id for all.")],
    output: OutputOption = None,
    save: SaveOption = None,
    ordering_address: OrderingAddressOption = None,
    as_json: JsonOption = False,
) -> None:
    """Add preload_adapters to a file (to --output), or to a stored ordering (a new revision)."""
    session = open_session(context, as_json, None, ordering_address)
    added = [PreloadAdapter(name, adapter_model_id) for name in names(adapters)]
    _derive(
        session,
        source,
        output,
        save,
        lambda client, start, where: client.orderings.derive(start, add_preload=added, destination=where),
    )


def remove_preload(
    context: typer.Context,
    source: SourceArgument,
    adapters: Annotated[str, typer.Option(metavar="A,B,...", help="Adapters not to preload any more.")],
    output: OutputOption = None,
    save: SaveOption = None,
    ordering_address: OrderingAddressOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take preload_adapters away from a file (to --output), or from a stored ordering (a new revision)."""
    session = open_session(context, as_json, None, ordering_address)
    removed = names(adapters)
    _derive(
        session,
        source,
        output,
        save,
        lambda client, start, where: client.orderings.derive(start, remove_preload=removed, destination=where),
    )


def _derive(
    session: Session,
    source: str,
    output: Path | None,
    save: str | None,
    derive: Callable[[Client, str | Path, Destination | None], DerivedOrdering],
) -> None:
    """The service changes files as well as stored orderings; of these it remembers what they were derived from."""
    file = file_named(source)
    if file is not None and save is not None:
        raise typer.BadParameter(f"{source} is a file: say -o FILE, and import that")
    with session.client() as client:
        if file is not None or (output is not None and save is None):
            deliver(session, OrderingFile(derive(client, file or source, None).json, ""), output)
            return
        if save is not None:
            where = Destination(save)
        elif "@" in source:
            raise typer.BadParameter(f"{source} is one revision; say -o FILE or --save ID, or name it without it")
        else:  # the etag guards the very revision that the change is derived from
            where = Destination(source, allow_existing=True, etag=client.orderings.get(source).etag)
        made = derive(client, source, where)
        if output is not None:
            deliver(session, OrderingFile(made.json, ""), output)
        assert made.ordering is not None  # there was a destination
        session.emit(made.ordering, ordering_table)


def _asked(may_ask: bool, option: str, question: str, default: str | None = None) -> str:
    if not may_ask:
        raise CommandError("USAGE", f"{option} is missing: {question}", USAGE_ERROR)
    answer: str = typer.prompt(question, default=default, show_default=bool(default), err=True)
    return answer


def _list_or_word(targets: str) -> Sequence[str] | str:
    """PEFT's word for all linear layers is no list."""
    return targets if targets.strip().lower() == "all-linear" else names(targets)


def _indices(text: str) -> list[int]:
    try:
        return [int(part) for part in names(text)]
    except ValueError:
        raise typer.BadParameter(f"--layers {text}: write numbers with commas, for instance 0,1,2") from None
