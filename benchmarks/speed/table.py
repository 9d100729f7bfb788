"""The outcomes as a table, as JSON and as Markdown."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.table import Table

from benchmarks.speed.comparison import Comparison, Limit, Outcome
from benchmarks.speed.machine import Machine

HEADINGS = ("work", "against", "ours", "other", "ratio", "target", "met", "others' CPU")


@dataclass(frozen=True, slots=True)
class Line:
    """An outcome, and what share of the processor others used while it was measured."""

    outcome: Outcome
    others_share: float
    is_disturbed: bool


@dataclass(frozen=True, slots=True)
class Report:
    """Everything of one run."""

    machine: Machine
    profile: str
    rounds: int
    lines: tuple[Line, ...]
    failures: tuple[str, ...]  # rows that could not be measured, and why


def cells(line: Line) -> tuple[str, ...]:
    """The line under HEADINGS."""
    outcome = line.outcome
    share = f"{line.others_share:.0%}{' !' if line.is_disturbed else ''}"
    bound = "≥" if outcome.better == "higher" else "≤"
    met = "yes" if outcome.is_met else "no"
    if isinstance(outcome, Limit):
        return (
            outcome.work,
            "",
            _figure(outcome.value, outcome.unit),
            "",
            "",
            f"{bound} {outcome.limit:g}",
            met,
            share,
        )
    ours, other = (_figure(_middle(values), outcome.unit) for values in (outcome.ours, outcome.other))
    return (
        outcome.work, outcome.against, ours, other, f"{outcome.ratio:.2f}", f"{bound} {outcome.target:g}", met, share
    )  # fmt: skip


def rich_table(report: Report) -> Table:
    """For a terminal."""
    table = Table(title=f"profile {report.profile}, {report.rounds} rounds, medians", caption=_caption(report))
    for heading in HEADINGS:
        table.add_column(heading, justify="left" if heading in ("work", "against") else "right")
    for line in report.lines:
        table.add_row(*cells(line), style=None if line.outcome.is_met else "bold")
    return table


def write_files(report: Report, folder: Path) -> list[Path]:
    """The report as JSON, with every round's figure, and as Markdown; returns the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    data = {
        "machine": asdict(report.machine),
        "profile": report.profile,
        "rounds": report.rounds,
        "rows": [_row(line) for line in report.lines],
        "failures": report.failures,
    }
    json_path, markdown_path = folder / f"{report.profile}.json", folder / f"{report.profile}.md"
    json_path.write_text(json.dumps(data, indent=1) + "\n")
    rows = [HEADINGS, tuple("---" for _ in HEADINGS), *(cells(line) for line in report.lines)]
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    markdown_path.write_text("\n".join([_caption(report), "", *lines, "", *report.failures]) + "\n")
    return [json_path, markdown_path]


def _row(line: Line) -> dict[str, object]:
    outcome = line.outcome
    derived: dict[str, object] = {"is_met": outcome.is_met, "others_share": round(line.others_share, 3)}
    if isinstance(outcome, Comparison):
        derived["ratio"] = outcome.ratio
    return asdict(outcome) | derived


def _caption(report: Report) -> str:
    machine = report.machine
    load = "/".join(f"{value:.1f}" for value in machine.load_average)
    text = (
        f"{machine.cpu}, {machine.cores} cores, {machine.memory_gib:g} GiB, {' '.join(machine.features)}; "
        f"load average before: {load}."
    )
    if any(line.is_disturbed for line in report.lines):
        text += " Lines with ! were measured while other processes used the processor: measure them again."
    return text


def _figure(value: float, unit: str) -> str:
    return f"{value:.3g} {unit}" if value < 100 else f"{value:.0f} {unit}"


def _middle(values: Sequence[float]) -> float:
    return sorted(values)[len(values) // 2]
