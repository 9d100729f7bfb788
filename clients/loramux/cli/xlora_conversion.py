"""`loramux adapters convert-xlora`."""

from __future__ import annotations

import enum
import json
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from loramux.cli.session import JsonOption, open_session
from loramux.client.xlora_layouts import convert_xlora


class To(enum.StrEnum):
    """The layout to write."""

    PEFT = "peft"
    ORIGINAL = "original"


def convert(
    context: typer.Context,
    source: Annotated[Path, typer.Argument(help="Folder of the X-LoRA, in either layout.")],
    target: Annotated[Path, typer.Argument(help="Folder to make.")],
    to: Annotated[To, typer.Option(help="The layout to write.")],
    order: Annotated[str | None, typer.Option(metavar="NAME,NAME...", help="Its adapters in training order.")] = None,
    ordering: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Ordering file whose `order` has them.", exists=True)
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Write an X-LoRA in the other layout, PEFT's or the original one, without losing anything.

    Example: loramux adapters convert-xlora demo/xlora mixture --to peft --ordering demo/xlora-ordering.json
    """
    session = open_session(context, as_json)
    if order is not None and ordering is not None:
        raise typer.BadParameter("--order and --ordering exclude each other")
    names = None if order is None else [name.strip() for name in order.split(",") if name.strip()]
    if ordering is not None:
        names = _order_of(ordering)
    adapters = convert_xlora(source, target, to.value, names)
    result = {"path": target, "layout": to.value, "adapters": adapters}
    session.emit(result, lambda _: Text(f"wrote {target} ({to.value}): {', '.join(adapters)}"))


def _order_of(path: Path) -> list[str]:
    try:
        names = json.loads(path.read_bytes()).get("order")
    except (ValueError, AttributeError):
        names = None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise typer.BadParameter(f"{path} has no `order` with the names of adapters")
    return names
