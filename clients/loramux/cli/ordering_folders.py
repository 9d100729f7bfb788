"""Reports on many ordering files that were imported or exported at once."""

from __future__ import annotations

from collections.abc import Sequence

import typer
from rich.table import Table
from rich.text import Text

from loramux.cli.problems import SERVICE_ERROR
from loramux.cli.session import Session
from loramux.client import FileReport, FileStatus

STYLES = {FileStatus.REFUSED: "bold red", FileStatus.UNCHANGED: "dim"}


def emit_reports(session: Session, reports: Sequence[FileReport]) -> None:
    """Prints what became of each file; exits with 1 if one was refused."""
    session.emit(reports, reports_table)
    if any(report.status is FileStatus.REFUSED for report in reports):
        raise typer.Exit(SERVICE_ERROR)


def reports_table(reports: Sequence[FileReport]) -> Table:
    """One line a file, and one for each problem of a refused one."""
    table = Table("File", "Ordering", "", "Revision", "Why", box=None)
    for report in reports:
        status = Text(report.status.value, style=STYLES.get(report.status, "green"))
        number = "" if report.revision_number is None else str(report.revision_number)
        told = [f"{problem.message} {problem.hint} [{problem.code}]" for problem in report.problems]
        why = "\n".join(told) or (f"{report.message} [{report.reason}]" if report.message else "")
        table.add_row(Text(str(report.path)), Text(report.ordering_id), status, number, Text(why))
    counts = {status: sum(report.status is status for report in reports) for status in FileStatus}
    table.caption = ", ".join(f"{count} {status.value}" for status, count in counts.items() if count) or "no files"
    table.caption_justify = "left"
    return table
