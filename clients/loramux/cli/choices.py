"""Adapters as words of a command line: `pirate`, `pirate=0.7`, `--xlora demo`, `--base`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

import typer

from loramux.client import BASE, AdapterChoice, AppliedAdapter, Base, LoRA, XLoRA, XLoRAOptions, parse_granularity
from loramux.client.adapters import AdapterKind, Selection

AdapterOption = Annotated[
    list[str] | None,
    typer.Option("--adapter", "-a", metavar="NAME[=WEIGHT]", help="A LoRA; repeat it for a weighted sum."),
]
XLoraOption = Annotated[str | None, typer.Option("--xlora", "-x", metavar="NAME", help="An X-LoRA mixture.")]
GranularityOption = Annotated[
    str | None,
    typer.Option(
        metavar="SPEC",
        help="How often X-LoRA scalings are computed: every-token, frozen-after:K, every:N or settled:EPSILON:PASSES.",
    ),
]
TopKLoraOption = Annotated[int | None, typer.Option(help="Only so many X-LoRA adapters at each token and layer.")]
SoftmaxTemperatureOption = Annotated[float | None, typer.Option(help="Of the X-LoRA classifier; lower is sharper.")]
GlobalScalingWeightOption = Annotated[float | None, typer.Option(help="Multiplies what the X-LoRA adds.")]
BaseOption = Annotated[bool, typer.Option("--base", help="The plain base model.")]


def chosen_adapters(adapters: Sequence[str] | None, xlora: str | None, base: bool) -> AdapterChoice:
    """The choice that the options spell; None (the active default) without any. Raises BadParameter."""
    if sum((bool(adapters), xlora is not None, base)) > 1:
        raise typer.BadParameter("--adapter, --xlora and --base exclude each other")
    if base:
        return BASE
    if xlora is not None:
        return XLoRA(xlora)
    return tuple(map(weighted_adapter, adapters)) if adapters else None


def xlora_options(
    granularity: str | None, top_k: int | None, temperature: float | None, weight: float | None
) -> XLoRAOptions | None:
    """The changes that the options spell; None without any. Raises InvalidArgument."""
    parsed = None if granularity is None else parse_granularity(granularity)
    options = XLoRAOptions(parsed, top_k, temperature, weight)
    return None if options == XLoRAOptions() else options


def weighted_adapter(word: str) -> LoRA:
    """`pirate=0.7` or `pirate`. Raises BadParameter."""
    name, separator, text = word.rpartition("=")
    if not separator:
        return LoRA(word)
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not name or not math.isfinite(weight):
        raise typer.BadParameter(f"{word!r} is not NAME or NAME=WEIGHT with a finite number")
    return LoRA(name, weight)


def describe_selection(selection: Selection) -> str:
    """For people, in one line."""
    if isinstance(selection, Base):
        return "base model"
    if isinstance(selection, XLoRA):
        return f"{selection.name} (X-LoRA)"
    return " + ".join(f"{lora.weight:g}×{lora.name}" for lora in selection)


def describe_applied(adapters: Sequence[AppliedAdapter]) -> str:
    """What a request was run with, in one line."""
    if not adapters:
        return "base model"
    return " + ".join(
        f"{adapter.name} (X-LoRA of {len(adapter.experts)})"
        if adapter.kind is AdapterKind.XLORA
        else f"{1.0 if adapter.weight is None else adapter.weight:g}×{adapter.name}"
        for adapter in adapters
    )
