"""The demo: one quantized model in memory answers as itself, with each adapter, with a weighted sum, and as a mixture.

usage: python -m orderings.demo.run [--output FOLDER]     (`make demo`)
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from loramux.cli.plot import save_plot
from loramux.client import (
    BASE,
    AdapterChoice,
    AdapterKind,
    AsyncClient,
    Client,
    GenerateOptions,
    Generation,
    Message,
    XLoRA,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

DEMO = Path(__file__).resolve().parent
PROMPTS = ("Tell me about pearl divers.", "Tell me about invoices.", "Tell me about autumn rain.")
STYLES = ("pirate", "json", "verse", "capitals")
CHOICES: dict[str, AdapterChoice] = {
    "base model": BASE,
    **{style: style for style in STYLES},
    "0.6 pirate + 0.6 capitals": {"pirate": 0.6, "capitals": 0.6},
    "X-LoRA mixture": XLoRA("mixture"),
}
MAX_TOKENS = 56


@dataclass
class Answer:
    """One cell of the table."""

    prompt: str
    choice: str
    text: str = ""
    generation: Generation | None = field(default=None)


def main() -> None:
    """Start the services, fill and apply the orderings, stream every answer at once, draw the scalings."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("build/demo"), help="data and pictures")
    output: Path = parser.parse_args().output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    console = Console()
    with services(output, console) as ready:
        with Client(ready["inference"], ordering=ready["ordering"]) as loramux:
            store_and_apply_orderings(loramux, console)
            model = loramux.model()
            console.print(
                f"One [bold]{model.base_model_id}[/] in {model.quantization}, {model.weight_bytes / 1e6:.0f} MB, "
                f"{model.kernels} kernels, serves {len(loramux.adapters.list())} adapters: "
                f"{len(PROMPTS) * len(CHOICES)} requests now stream at once."
            )
        asyncio.run(answer_everything(ready["inference"], output, console))


@contextmanager
def services(output: Path, console: Console) -> Iterator[dict[str, Any]]:
    """`loramux up` in the background; what it prints when it is ready."""
    program = [sys.executable, "-m", "loramux.cli", "up", "--json", "--data-dir", str(output / "data")]
    program += ["--adapter-root", str(DEMO), "--listen", "127.0.0.1:0", "--ordering-listen", "127.0.0.1:0"]
    with (
        console.status("starting the ordering service and the inference service"),
        subprocess.Popen(program, stdout=subprocess.PIPE, text=True) as process,
    ):
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            sys.exit(process.wait())
        console.print("$ loramux up --adapter-root orderings/demo")
        try:
            yield json.loads(line)
        finally:
            process.terminate()


def store_and_apply_orderings(loramux: Client, console: Console) -> None:
    """Import both ordering files, then have the inference service fetch them by id."""
    for name, place, kind in (("styles", None, AdapterKind.LORA), ("mixture", "xlora", AdapterKind.XLORA)):
        path = DEMO / ("lora-ordering.json" if kind is AdapterKind.LORA else "xlora-ordering.json")
        stored = loramux.orderings.import_file(path, name, allow_existing=True, kind=kind, adapter_model_id=place or "")
        applied = loramux.apply_ordering(f"{name}@{stored.revision_id}", activate=False)
        brought = ", ".join(adapter.name for adapter in applied.adapters)
        console.print(f"ordering [bold]{name}[/]@{stored.revision_id} ({path.name}) brought: {brought}")


async def answer_everything(address: str, output: Path, console: Console) -> None:
    """Stream every prompt with every choice of adapters at once, into a live table."""
    answers = [Answer(prompt, choice) for prompt in PROMPTS for choice in CHOICES]
    async with AsyncClient(address) as loramux:
        start = time.perf_counter()
        with Live(console=console, refresh_per_second=8, auto_refresh=console.is_terminal) as live:

            async def run(answer: Answer) -> None:
                choice = CHOICES[answer.choice]
                options = GenerateOptions(temperature=0.0, max_tokens=MAX_TOKENS)
                if isinstance(choice, XLoRA):
                    options["scalings"] = "full"
                stream = loramux.stream(chat(answer.prompt), adapters=choice, **options)
                async for piece in stream:
                    answer.text += piece.text
                    live.update(tables(answers))
                answer.generation = await stream.generation()

            await asyncio.gather(*(run(answer) for answer in answers))
            live.update(tables(answers), refresh=True)
        seconds = time.perf_counter() - start
        tokens = sum(a.generation.usage.completion_tokens for a in answers if a.generation is not None)
        console.print(f"{len(answers)} answers, {tokens} tokens in {seconds:.1f} s: {tokens / seconds:.0f} tokens/s.")
        await show_scalings(loramux, answers, output, console)


async def show_scalings(loramux: AsyncClient, answers: list[Answer], output: Path, console: Console) -> None:
    """Mean scalings of the mixture as a table, and a picture for each prompt."""
    table = Table("X-LoRA mixture: mean scalings", *STYLES, "picture")
    for answer in answers:
        generation = answer.generation
        if answer.choice != "X-LoRA mixture" or generation is None or generation.scalings is None:
            continue
        record = await loramux.record_scalings(chat(answer.prompt), generation)
        picture = output / f"scalings-{answer.prompt.rstrip('.').split()[-1]}.png"
        save_plot(record, picture, answer.prompt)
        means = record.values.mean(axis=(0, 1))
        cells = [Text(f"{mean:.2f}", style="bold green" if mean == means.max() else "") for mean in means]
        table.add_row(answer.prompt, *cells, picture.name)
    console.print(table)
    console.print(f"The pictures are in {output}.")


def chat(prompt: str) -> list[Message]:
    """A conversation of one turn."""
    return [{"role": "user", "content": prompt}]


def tables(answers: list[Answer]) -> Group:
    """One table for each prompt."""
    shown = []
    for prompt in PROMPTS:
        table = Table("", f"[bold]{prompt}[/]", expand=True)
        table.columns[0].width = max(map(len, CHOICES))
        for answer in answers:
            if answer.prompt == prompt:
                table.add_row(answer.choice, Text(answer.text))
        shown.append(table)
    return Group(*shown)


if __name__ == "__main__":
    main()
