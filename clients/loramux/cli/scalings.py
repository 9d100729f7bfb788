"""`loramux scalings plot` and `loramux scalings export`."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.text import Text

from loramux.cli.choices import GranularityOption
from loramux.cli.generate import MaxTokensOption, SeedOption, TemperatureOption
from loramux.cli.heat_map import heat_map
from loramux.cli.json_output import to_json
from loramux.cli.plot import save_plot
from loramux.cli.session import AddressOption, JsonOption, Session, open_session
from loramux.client import GenerateOptions, Prompt, ScalingsRecord, XLoRA, XLoRAOptions, parse_granularity
from loramux.client.prompts import user_message

FileArgument = Annotated[Path | None, typer.Argument(metavar="[FILE.npz]", help="What --scalings-out saved.")]


def plot(
    context: typer.Context,
    file: FileArgument = None,
    prompt: Annotated[str | None, typer.Option(help="Answer this now instead of reading a file.")] = None,
    xlora: Annotated[str | None, typer.Option("--xlora", "-x", metavar="NAME", help="With this X-LoRA.")] = None,
    chat: Annotated[bool, typer.Option("--chat/--raw", help="As a chat message, or as plain text.")] = True,
    max_tokens: MaxTokensOption = 48,
    temperature: TemperatureOption = 0.0,
    seed: SeedOption = None,
    granularity: GranularityOption = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE.png", help="Draw a picture (png, svg, pdf).")
    ] = None,
    address: AddressOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show how much an X-LoRA used each adapter: in the terminal, and with -o as a picture."""
    session = open_session(context, as_json, address)
    if (file is None) == (prompt is None):
        raise typer.BadParameter("give either a FILE.npz, or --prompt with --xlora")
    if file is not None:
        record, title = ScalingsRecord.load(file), file.name
    else:
        if xlora is None:
            raise typer.BadParameter("--prompt needs --xlora NAME")
        assert prompt is not None
        options = GenerateOptions(scalings="full")
        if max_tokens is not None:
            options["max_tokens"] = max_tokens
        if temperature is not None:
            options["temperature"] = temperature
        if seed is not None:
            options["seed"] = seed
        if granularity is not None:
            options["xlora"] = XLoRAOptions(parse_granularity(granularity))
        record, title = _answer(session, user_message(prompt) if chat else prompt, xlora, options), prompt
    if output is not None:
        save_plot(record, output, title)
    summary = {
        "path": output,
        "tokens": record.values.shape[0],
        "layers": record.values.shape[1],
        "mean": dict(zip(record.experts, record.values.mean(axis=(0, 1)).tolist(), strict=True)),
    }
    session.emit(summary, lambda _: heat_map(record))
    if output is not None:
        session.say(f"wrote {output}")


def export(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FILE.npz", help="What --scalings-out saved.")],
    as_csv: Annotated[bool, typer.Option("--csv", help="As CSV: one line for each token and layer.")] = False,
    as_npy: Annotated[
        bool, typer.Option("--npy", help=r"As a numpy array of float32 \[tokens, layers, adapters]; needs -o.")
    ] = False,
    output: Annotated[Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write it here.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Turn saved scalings into CSV, JSON or a numpy array."""
    session = open_session(context, as_json)
    if as_npy and output is None:
        raise typer.BadParameter("--npy needs -o FILE: an array is nothing for a terminal")
    if as_csv + as_npy + (session.json and not as_npy) != 1:
        raise typer.BadParameter("say one of --csv, --json and --npy")
    record = ScalingsRecord.load(file)
    if as_npy:
        assert output is not None
        buffer = io.BytesIO()
        np.save(buffer, record.values)
        output.write_bytes(buffer.getvalue())
        session.emit({"path": output, "shape": record.values.shape}, lambda _: Text(f"wrote {output}"))
        return
    text = _csv(record) if as_csv else to_json(record) + "\n"
    if output is None:
        session.write(text)
        return
    output.write_text(text, encoding="utf-8")
    session.emit({"path": output}, lambda _: Text(f"wrote {output}"))


def _answer(session: Session, prompt: Prompt, xlora: str, options: GenerateOptions) -> ScalingsRecord:
    with session.client() as client, session.err.status("answering"):
        generation = client.generate(prompt, adapters=XLoRA(xlora), **options)
        return client.record_scalings(prompt, generation)


def _csv(record: ScalingsRecord) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(("position", "token_id", "token_text", "part", "layer", *record.experts))
    for position, (token, text) in enumerate(zip(record.token_ids, record.token_texts, strict=True)):
        part = "prompt" if position < record.prompt_tokens else "answer"
        for layer, row in enumerate(record.values[position]):
            writer.writerow((position, token, text, part, layer, *(f"{value:.9g}" for value in row)))
    return buffer.getvalue()
