"""What `python -m inference_svc.distortion` found, as a table and as CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table
from rich.text import Text

from loramux.cli.tables import size

_COLUMNS = (
    "text",
    "position",
    "token_id",
    "token_text",
    "kl",
    "agrees",
    "reference_logprob",
    "compared_logprob",
    "scaling_drift",
)


@dataclass(frozen=True, slots=True)
class DistortionReport:
    """The report; `values` has the fields of `inference_svc.distortion.report.Report`."""

    values: Mapping[str, Any]

    @classmethod
    def load(cls, path: Path) -> DistortionReport:
        """From the file that the measurement wrote."""
        return cls(json.loads(path.read_text(encoding="utf-8")))

    @property
    def distortions(self) -> Sequence[Mapping[str, Any]]:
        """The base model's, then that with adapters."""
        found: Sequence[Mapping[str, Any]] = self.values["distortions"]
        return found

    @property
    def title(self) -> str:
        """Which models."""
        reference, compared = self.values["reference"], self.values["compared"]
        return f"{_model_line(compared)} against {_model_line(reference)}"

    def summary(self) -> dict[str, Any]:
        """All of it but the single positions."""
        kept = {key: value for key, value in self.values.items() if key not in ("distortions", "token_texts")}
        kept["distortions"] = [
            {key: value for key, value in each.items() if key != "positions"} for each in self.distortions
        ]
        return kept

    def csv(self) -> str:
        """One line for each position of each text, of the base model and then with adapters."""
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(("adapters", *_COLUMNS))
        for each in self.distortions:
            columns = dict(each["positions"])
            columns["token_text"] = [self.values["token_texts"][str(token)] for token in columns["token_id"]]
            count = len(columns["kl"])
            rows = zip(*(columns[name] or [None] * count for name in _COLUMNS), strict=True)
            for row in rows:
                writer.writerow((each["adapters"] or "", *map(_cell, row)))
        return buffer.getvalue()

    def table(self) -> Table:
        """For people."""
        grid = Table.grid(padding=(1, 0))
        grid.add_row(self._models())
        grid.add_row(self._measures())
        return grid

    def _models(self) -> Table:
        table = Table("", "reference", "compared", box=None, header_style="bold")
        rows = (("model", "model"), ("weights", "quantization"), ("kernels", "kernels"), ("activations", "activations"))
        sides = (self.values["reference"], self.values["compared"])
        for name, key in rows:
            table.add_row(Text(name, style="dim"), *(Text(str(side[key])) for side in sides))
        bits = (side["bits_per_weight"] for side in sides)
        table.add_row(Text("bits a weight", style="dim"), *("?" if each is None else f"{each:.2f}" for each in bits))
        table.add_row(Text("size", style="dim"), *(size(side["weight_bytes"]) for side in sides))
        return table

    def _measures(self) -> Table:
        headings = list(map(heading, self.distortions))
        table = Table("", *map(escape, headings), box=None, header_style="bold")
        summaries = [each["summary"] for each in self.distortions]

        def row(name: str, cells: Sequence[str]) -> None:
            table.add_row(Text(name, style="dim"), *cells)

        row("positions", [str(each["positions"]) for each in summaries])
        row("mean KL", [f"[bold]{each['mean_kl']:.3g}[/] nats" for each in summaries])
        row(
            "median, 99 %, max",
            [f"{each['median_kl']:.3g}, {each['p99_kl']:.3g}, {each['max_kl']:.3g}" for each in summaries],
        )
        row("top-1 agreement", [f"[bold]{100 * each['top1_agreement']:.2f} %[/]" for each in summaries])
        row(
            "perplexity",
            [f"{each['reference_perplexity']:.4g} → {each['compared_perplexity']:.4g}" for each in summaries],
        )
        drifts = [each["drift"] for each in self.distortions]
        if any(drifts):
            row("scalings: mean drift", ["" if each is None else f"[bold]{each['mean']:.3g}[/]" for each in drifts])
            row("scalings: max drift", ["" if each is None else f"{each['max']:.3g}" for each in drifts])
            row(
                "same top adapter",
                ["" if each is None else f"{100 * each['top_expert_agreement']:.2f} %" for each in drifts],
            )
        texts = f"{self.values['texts']} texts"
        if self.values["cut_texts"]:
            texts += f", {self.values['cut_texts']} of them cut to {self.values['max_tokens']} tokens"
        table.caption, table.caption_justify = texts, "left"
        return table


def heading(distortion: Mapping[str, Any]) -> str:
    """What was measured, in a few words."""
    adapters = distortion["adapters"]
    return "base model" if adapters is None else f"with {Path(adapters).name}"


def _model_line(side: Mapping[str, Any]) -> str:
    model = str(side["model"])
    if model.startswith(("/", ".", "~")):  # where it lies would leave no room for what it is; the table says it
        model = Path(model).name
    return f"{model} ({side['quantization']}, {side['kernels']})"


def _cell(value: object) -> object:
    if isinstance(value, bool):
        return int(value)
    return f"{value:.9g}" if isinstance(value, float) else value
